import grpc
import numpy as np
import pytest

from serving.errors import ModelMismatch, ModelTimeout, ModelUnavailable, Overloaded
from serving.model_client.messages import predict_pb2, types_pb2
from tests.conftest import VERSION
from tests.fake_model_server import answer, refusing


@pytest.mark.parametrize(
    "ask", [lambda client: client.sample(VERSION, [1, 2]), lambda client: client.golden(VERSION).digests]
)
def test_typed_fields_and_tensor_content_give_equal_numbers(client, server, ask):
    typed = ask(client)
    server.reply = lambda request: answer(request, as_content=True)
    assert np.array_equal(ask(client), typed)


def test_client_reads_a_response_above_the_default_limit_of_grpc(client, server):
    large = np.zeros((64, 256, 256, 3), np.uint8)  # 12.6 MB
    server.reply = lambda request: answer(request, as_content=True, images=large)
    assert client.generate(VERSION, range(64)).shape == large.shape


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, ModelUnavailable),
        (grpc.StatusCode.CANCELLED, ModelUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ModelTimeout),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, ModelMismatch),
    ],
)
def test_error_names_server_status_and_model_when_a_call_fails(client, server, code, error):
    server.reply = refusing(code)
    with pytest.raises(error) as caught:
        client.generate(VERSION, [1])
    assert str(caught.value) == f"The model server at {server.target} answered {code.name} for model 'apple'."


def altered(alter, **options):
    """Return a reply whose response `alter` has changed."""

    def reply(request):
        response = answer(request, **options)
        alter(response)
        return response

    return reply


def rename_output(response):
    response.outputs["logits"].CopyFrom(response.outputs["images"])
    del response.outputs["images"]


def cut_content(response):
    response.outputs["images"].tensor_content = response.outputs["images"].tensor_content[:-1]


def shaped(*shape):
    return lambda request: answer(request, images=np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "reply",
    [
        lambda request: predict_pb2.PredictResponse(),
        lambda request: answer(request, version=VERSION + 1),
        altered(lambda response: setattr(response.outputs["images"], "dtype", types_pb2.DT_FLOAT)),
        altered(rename_output),
        altered(lambda response: response.outputs["images"].int_val.pop()),
        altered(cut_content, as_content=True),
        altered(lambda response: response.model_spec.ClearField("version")),
        *(shaped(*shape) for shape in ((2, 6, 8, 3), (1, 6, 8, 4), (1, 0, 8, 3), (1, 6, 8))),
    ],
)
def test_client_raises_a_mismatch_when_a_response_breaks_the_contract(client, server, reply):
    server.reply = reply
    with pytest.raises(ModelMismatch):
        client.generate(VERSION, [1])
