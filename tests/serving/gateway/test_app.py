"""Images, errors and readiness of the gateway, over HTTP."""

import grpc
import numpy as np
import pytest

from serving.__main__ import FOREIGN
from serving.gateway.app import create_app
from serving.model_client.messages import predict_pb2, types_pb2
from serving.settings import Settings
from tests.conftest import VERSION, wait_until
from tests.fake_model_server import answer, refusing


def test_random_seeds_differ_and_are_exact_in_javascript(gateway):
    seeds = {int(gateway.ask("/generate").headers["Ringo-Seed"]) for _ in range(20)}
    assert len(seeds) == 20
    assert 2**48 < max(seeds) < 2**53  # fails by chance once in 2**100 runs


def test_unexpected_exception_is_a_problem_without_a_traceback():
    app = create_app(Settings())
    app.add_url_rule("/broken", view_func=lambda: {}["the inside"])
    reply = app.test_client().get("/broken")
    assert (reply.status_code, reply.content_type) == (500, "application/problem+json")
    assert "the inside" not in reply.text


@pytest.mark.parametrize(
    ("code", "status", "kind", "retry_after"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 502, "model-mismatch", None),
        (grpc.StatusCode.CANCELLED, 503, "model-unavailable", "1"),
        (grpc.StatusCode.UNAVAILABLE, 503, "model-unavailable", "1"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503, "overloaded", "1"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "model-timeout", None),
    ],
)
def test_error_of_the_model_server_is_a_problem(gateway, model_server, monkeypatch, code, status, kind, retry_after):
    monkeypatch.setattr(model_server, "reply", refusing(code))
    reply = gateway.ask("/generate?seed=1000")
    assert (reply.status, reply.problem["type"]) == (status, f"urn:ringo:problem:{kind}")
    sentence = f"The model server at {model_server.target} answered {code.name} for model 'apple'."
    assert reply.problem["detail"] == sentence
    assert (reply.headers["Retry-After"], reply.headers["Cache-Control"]) == (retry_after, "no-store")


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
        *(shaped(*shape) for shape in ((2, 6, 8, 3), (1, 6, 8, 4), (1, 6, 8, 1), (1, 0, 8, 3), (1, 6, 8))),
    ],
)
def test_response_of_another_version_shape_or_type_is_502(gateway, model_server, monkeypatch, reply):
    monkeypatch.setattr(model_server, "reply", reply)
    assert gateway.ask("/generate?seed=1000").status == 502


@pytest.mark.parametrize(("state", "status"), [("AVAILABLE", 200), ("LOADING", 503), ("END", 503)])
def test_gateway_is_ready_when_a_version_is_available(gateway, model_server, monkeypatch, state, status):
    monkeypatch.setattr(model_server, "state", state)
    wait_until(lambda: gateway.ask("/readyz").status == status, "the gateway to notice")
    monkeypatch.undo()
    wait_until(lambda: gateway.ask("/readyz").status == 200, "the gateway to notice again")


def test_gateway_serves_and_counts_when_variables_of_its_libraries_are_set(model_server, start_gateway):
    gateway = start_gateway(model_server.target, wrapper=("env", *(f"{name}=/nope" for name in FOREIGN)))
    assert gateway.ask("/generate?seed=1").status == 200
    assert gateway.rendered() == 1
