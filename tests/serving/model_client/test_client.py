import threading
from contextlib import closing

import grpc
import numpy as np
import pytest

from serving.errors import ModelMismatch, ModelTimeout, ModelUnavailable, UnknownVersion
from serving.model_client.client import ERRORS, ModelClient
from serving.model_client.messages import predict_pb2, types_pb2
from tests.fake_model_server import INSIDE, FakeModelServer, StatusError, answer, golden, picture

PREDICT_TIMEOUT_S = 10.0


def client_of(target, *, model_name="apple", predict_timeout_s=PREDICT_TIMEOUT_S):
    return closing(ModelClient(target, model_name, predict_timeout_s=predict_timeout_s))


@pytest.fixture
def server():
    with FakeModelServer(version=7) as server:
        yield server


@pytest.fixture
def until_the_test_ends():
    ended = threading.Event()

    def reply(request):
        ended.wait(timeout=60)
        return answer(request, version=7)

    yield reply
    ended.set()


@pytest.fixture
def client(server):
    with client_of(server.target) as client:
        yield client


def test_there_is_one_picture_per_seed_in_order(client):
    seeds = [5, 0, 2**63 - 1, 5]
    assert np.array_equal(client.generate(7, seeds), np.stack([picture(seed, 7) for seed in seeds]))


def test_sample_and_paint_together_are_generate(client):
    assert np.array_equal(client.paint(7, client.sample(7, [1, 2])), client.generate(7, [1, 2]))


def test_the_golden_digests_come_with_their_seeds(client):
    found = client.golden(7)
    assert found.seeds.tolist() == list(range(64))
    assert np.array_equal(found.digests, golden(7))


def test_a_model_without_golden_digests_has_none(client, server):
    def reply(request):
        if request.model_spec.signature_name == "golden":
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION)
        return answer(request, version=7)

    server.reply = reply
    assert client.golden(7) is None


@pytest.mark.parametrize("ask", ["generate", "sample", "golden"])
def test_typed_fields_and_tensor_content_give_equal_numbers(client, server, ask):
    def numbers():
        if ask == "golden":
            return client.golden(7).digests
        return getattr(client, ask)(7, [1, 2])

    typed = numbers()
    server.reply = lambda request: answer(request, version=7, as_content=True)
    assert np.array_equal(numbers(), typed)


@pytest.mark.parametrize("ask", [lambda c: c.generate(8, [1]), lambda c: c.sample(8, [1]), lambda c: c.golden(8)])
def test_a_version_that_is_not_loaded_is_unknown(client, ask):
    with pytest.raises(UnknownVersion, match="no version 8 of 'apple'"):
        ask(client)


def test_an_answer_of_another_version_is_a_mismatch(client, server):
    server.reply = lambda request: answer(request, version=8)
    with pytest.raises(ModelMismatch, match="asked for version 7 and answered as version 8"):
        client.generate(7, [1])


def test_no_request_of_zero_rows_is_ever_sent(client, server):
    with pytest.raises(ValueError):
        client.generate(7, [])
    assert server.requests == []


def test_no_request_has_more_rows_than_the_model_server_takes(client, server):
    assert len(client.generate(7, range(130))) == 130
    assert [r.inputs["seeds"].tensor_shape.dim[0].size for r in server.requests] == [64, 64, 2]


def test_an_answer_above_grpcs_default_limit_is_read(client, server):
    large = np.zeros((64, 256, 256, 3), np.uint8)  # 12.6 MB
    server.reply = lambda request: answer(request, version=7, as_content=True, images=large)
    assert client.generate(7, range(64)).shape == large.shape


def test_every_status_code_has_its_error():
    assert set(ERRORS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def refuse(code):
    def reply(request):
        raise StatusError(code)

    return reply


@pytest.mark.parametrize("code", sorted(set(ERRORS) - {grpc.StatusCode.NOT_FOUND}, key=lambda code: code.name))
def test_a_status_becomes_its_error_which_names_server_status_and_model(client, server, code):
    server.reply = refuse(code)
    with pytest.raises(ERRORS[code]) as caught:
        client.generate(7, [1])
    assert str(caught.value) == f"The model server at {server.target} answered {code.name} for model 'apple'."


def test_the_servers_own_text_is_for_the_log(client, server, caplog):
    server.reply = refuse(grpc.StatusCode.INTERNAL)
    with pytest.raises(ModelMismatch):
        client.generate(7, [1])
    assert caplog.messages == [f"Predict: INTERNAL: {INSIDE}"]


def other_dtype(request):
    response = answer(request, version=7)
    response.outputs["images"].dtype = types_pb2.DT_FLOAT
    return response


def other_output(request):
    response = answer(request, version=7)
    response.outputs["logits"].CopyFrom(response.outputs["images"])
    del response.outputs["images"]
    return response


def other_shape(*shape):
    return lambda request: answer(request, version=7, images=np.zeros(shape, np.uint8))


def one_number_less(request):
    response = answer(request, version=7)
    response.outputs["images"].int_val.pop()
    return response


def part_of_the_content(request):
    response = answer(request, version=7, as_content=True)
    response.outputs["images"].tensor_content = response.outputs["images"].tensor_content[:-1]
    return response


def no_version(request):
    response = answer(request, version=7)
    response.model_spec.ClearField("version")
    return response


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lambda request: predict_pb2.PredictResponse(), id="empty"),
        other_dtype,
        other_output,
        pytest.param(other_shape(2, 6, 8, 3), id="another number of rows"),
        pytest.param(other_shape(1, 6, 8, 4), id="four channels"),
        pytest.param(other_shape(6, 8, 3), id="rank 3"),
        pytest.param(other_shape(1, 0, 8, 3), id="no pixels"),
        pytest.param(other_shape(1, 6, 8), id="no channels"),
        one_number_less,
        part_of_the_content,
        no_version,
    ],
)
def test_an_answer_against_the_contract_is_a_mismatch(client, server, reply):
    server.reply = reply
    with pytest.raises(ModelMismatch):
        client.generate(7, [1])


def test_a_server_that_is_slow_is_a_timeout(server, until_the_test_ends):
    server.reply = until_the_test_ends
    with client_of(server.target, predict_timeout_s=0.2) as client, pytest.raises(ModelTimeout):
        client.generate(7, [1])


def test_a_server_that_is_down_is_unavailable_without_waiting():
    with FakeModelServer() as gone:
        pass
    with client_of(gone.target, predict_timeout_s=60.0) as client, pytest.raises(ModelUnavailable):
        client.generate(7, [1])  # to wait for it would end in ModelTimeout


def test_the_available_versions_are_known(client):
    assert client.available_versions() == [7]


@pytest.mark.parametrize("state", ["START", "LOADING", "UNLOADING", "END"])
def test_a_version_in_another_state_is_not_available(client, server, state):
    server.state = state
    with pytest.raises(ModelUnavailable):
        client.available_versions()


def test_a_model_of_another_name_is_not_available(server):
    with client_of(server.target, model_name="cat") as client, pytest.raises(ModelUnavailable):
        client.available_versions()
