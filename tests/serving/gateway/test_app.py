"""Images, errors and readiness of the gateway, over HTTP."""

import grpc
import numpy as np
import pytest

from serving.gateway.app import create_app
from serving.settings import Settings
from tests.conftest import VERSION, wait_until
from tests.fake_model_server import StatusError, answer


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
        (grpc.StatusCode.UNAVAILABLE, 503, "model-unavailable", "1"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503, "overloaded", "1"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "model-timeout", None),
    ],
)
def test_error_of_the_model_server_is_a_problem(gateway, model_server, monkeypatch, code, status, kind, retry_after):
    def refuse(request):
        raise StatusError(code)

    monkeypatch.setattr(model_server, "reply", refuse)
    reply = gateway.ask("/generate?seed=1000")
    assert (reply.status, reply.problem["type"]) == (status, f"urn:ringo:problem:{kind}")
    assert (reply.headers["Retry-After"], reply.headers["Cache-Control"]) == (retry_after, "no-store")


def test_pixels_of_another_shape_are_502(gateway, model_server, monkeypatch):
    grey = np.zeros((1, 6, 8, 1), np.uint8)
    monkeypatch.setattr(model_server, "reply", lambda request: answer(request, version=VERSION, images=grey))
    assert gateway.ask("/generate?seed=1000").status == 502


@pytest.mark.parametrize(("state", "status"), [("AVAILABLE", 200), ("LOADING", 503), ("END", 503)])
def test_gateway_is_ready_when_a_version_is_available(gateway, model_server, monkeypatch, state, status):
    monkeypatch.setattr(model_server, "state", state)
    wait_until(lambda: gateway.ask("/readyz").status == status, "the gateway to notice")
    monkeypatch.undo()
    wait_until(lambda: gateway.ask("/readyz").status == 200, "the gateway to notice again")
