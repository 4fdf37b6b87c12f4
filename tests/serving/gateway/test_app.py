"""Through the front door: HTTP in, a real gunicorn, gRPC to a model server on a socket."""

import http.client
import io
import threading
from contextlib import closing

import grpc
import numpy as np
import pytest
from PIL import Image

from serving.errors import RingoError
from serving.gateway.app import create_app
from serving.gateway.problems import ANSWERS
from serving.settings import Settings
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, StatusError, answer, picture
from tests.gateway_process import Reply, gateway_for

MAX_SEED = 2**63 - 1


@pytest.mark.parametrize("seed", [0, 1, 42, MAX_SEED])
def test_a_seed_gives_the_png_of_its_picture(gateway, seed):
    reply = gateway.ask(f"/generate?seed={seed}")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.body))), picture(seed, 3))


def test_the_same_seed_gives_the_same_bytes(gateway):
    assert gateway.ask("/generate?seed=42").body == gateway.ask("/generate?seed=42").body


def test_an_answer_names_its_seed_its_model_version_and_its_address(gateway):
    headers = gateway.ask("/generate?seed=42").headers
    assert headers["Ringo-Seed"] == "42"
    assert headers["Ringo-Model-Version"] == "3"
    assert headers["Content-Location"] == "/generate?seed=42&format=png&version=3"


def test_a_seeds_picture_may_be_kept_but_must_be_asked_for_again(gateway):
    assert gateway.ask("/generate?seed=42").headers["Cache-Control"] == "no-cache"


def test_a_chosen_seeds_picture_must_not_be_kept(gateway):
    assert gateway.ask("/generate").headers["Cache-Control"] == "no-store"


def test_without_a_seed_the_one_chosen_gives_the_same_bytes_when_asked_for(gateway):
    chosen = gateway.ask("/generate")
    assert gateway.ask(chosen.headers["Content-Location"]).body == chosen.body


def test_chosen_seeds_differ_and_come_from_the_whole_range(gateway):
    seeds = {int(gateway.ask("/generate").headers["Ringo-Seed"]) for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) > 2**58  # fails by chance once in 2**100 runs


def test_head_gives_the_headers_of_get_and_no_body(gateway):
    head = gateway.ask("/generate?seed=42", "HEAD")
    get = gateway.ask("/generate?seed=42")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(get.body))


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("seed=-1", "-1"),
        ("seed=-0", "-0"),
        ("seed=%2B1", "+1"),
        ("seed=9223372036854775808", "9223372036854775808"),
        ("seed=99999999999999999999", "99999999999999999999"),
        ("seed=1.5", "1.5"),
        ("seed=1e3", "1e3"),
        ("seed=0x2A", "0x2A"),
        ("seed=1_000", "1_000"),
        ("seed=%2042", " 42"),
        ("seed=42%0A", "42\n"),
        ("seed=007", "007"),
        ("seed=", ""),
        ("seed", ""),
        ("seed=apple", "apple"),
        ("seed=%EF%BC%94%EF%BC%92", "４２"),
        ("seed=%D9%A3", "٣"),
        ("seed=%FF", "%FF"),
        ("seed=%00", "\0"),
        ("seed=1&seed=2", "1, 2"),
        ("seed=1&seed=1", "1, 1"),
        ("seed=" + "9" * 3000, "9" * 64 + "…"),
    ],
)
def test_a_bad_seed_is_a_problem_that_names_it_and_what_is_allowed(gateway, query, value):
    reply = gateway.ask(f"/generate?{query}")
    problem = reply.problem
    assert reply.status == 400
    assert (problem["parameter"], problem["value"]) == ("seed", value)
    assert f"0 to {MAX_SEED}" in problem["allowed"]
    assert problem["detail"] == f"seed={value!r} is not valid; allowed is {problem['allowed']}."
    assert (problem["type"], problem["instance"]) == ("urn:ringo:problem:invalid-request", "/generate")


def test_a_parameter_that_is_missing_is_a_problem_that_says_so(gateway):
    problem = gateway.ask("/morph?start=7").problem
    assert (problem["status"], problem["parameter"], problem["value"]) == (400, "end", None)
    assert problem["detail"] == f"end is missing; allowed is {problem['allowed']}."
    assert gateway.ask("/morph?start=7&end=").problem["detail"].startswith("end='' is not valid; allowed is one whole")


@pytest.mark.parametrize(
    ("query", "parameter"), [("sede=42", "sede"), ("seed=1&Seed=2", "Seed"), ("=1", ""), ("a" * 99, "a" * 64 + "…")]
)
def test_an_unknown_parameter_is_a_problem_that_names_it(gateway, query, parameter):
    reply = gateway.ask(f"/generate?{query}")
    assert reply.status == 400
    assert reply.problem["parameter"] == parameter
    assert reply.problem["allowed"] == "no parameter but seed, size, format, version"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate/", 404),
        ("GET", "/static/x", 404),
        ("POST", "/generate", 405),
    ],
)
def test_every_refusal_is_a_problem_that_tells_nothing_of_the_inside(gateway, method, path, status):
    with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S)) as connection:
        connection.connect()
        connection.send(f"{method} {path} HTTP/1.1\r\nHost: ringo\r\n\r\n".encode())
        with http.client.HTTPResponse(connection.sock, method=method) as response:
            response.begin()
            reply = Reply(response.status, response.headers, response.read())
    assert reply.status == status
    assert reply.problem["type"] == "about:blank"
    assert b"Traceback" not in reply.body


def test_a_method_that_is_not_allowed_is_told_which_are(gateway):
    assert set(gateway.ask("/generate", "POST").headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_an_error_of_our_own_is_a_problem_without_a_traceback():
    app = create_app(Settings())
    app.add_url_rule("/broken", view_func=lambda: {}["the inside"])
    reply = app.test_client().get("/broken")
    assert (reply.status_code, reply.content_type) == (500, "application/problem+json")
    assert "the inside" not in reply.text


def test_every_domain_error_has_its_status():
    def all_below(error: type[RingoError]) -> set[type[RingoError]]:
        return {below for direct in error.__subclasses__() for below in {direct, *all_below(direct)}}

    assert set(ANSWERS) == all_below(RingoError)


@pytest.fixture(scope="module")
def fickle_server():
    with FakeModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def patient_gateway(fickle_server, tmp_path_factory):
    with gateway_for(fickle_server.target, tmp_path_factory.mktemp("patient")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def hasty_gateway(fickle_server, tmp_path_factory):
    with gateway_for(fickle_server.target, tmp_path_factory.mktemp("hasty"), predict_timeout_s=0.3) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("code", "status", "kind", "retry_after"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 502, "model-mismatch", None),
        (grpc.StatusCode.UNAVAILABLE, 503, "model-unavailable", "1"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503, "overloaded", "1"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "model-timeout", None),
    ],
)
def test_what_the_model_server_refuses_is_a_problem(
    patient_gateway, fickle_server, monkeypatch, code, status, kind, retry_after
):
    def refuse(request):
        raise StatusError(code)

    monkeypatch.setattr(fickle_server, "reply", refuse)
    reply = patient_gateway.ask("/generate?seed=1")
    assert (reply.status, reply.problem["type"]) == (status, f"urn:ringo:problem:{kind}")
    assert (reply.headers["Retry-After"], reply.headers["Cache-Control"]) == (retry_after, "no-store")


def test_a_model_server_that_takes_too_long_is_504(hasty_gateway, fickle_server, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(fickle_server, "reply", lambda request: ended.wait(LIMIT_S))
    try:
        assert hasty_gateway.ask("/generate?seed=1").status == 504
    finally:
        ended.set()


def test_pixels_of_another_shape_are_502(patient_gateway, fickle_server, monkeypatch):
    grey = np.zeros((1, 6, 8, 1), np.uint8)
    monkeypatch.setattr(fickle_server, "reply", lambda request: answer(request, version=1, images=grey))
    assert patient_gateway.ask("/generate?seed=1").status == 502


@pytest.mark.parametrize(("state", "status"), [("AVAILABLE", 200), ("LOADING", 503), ("END", 503)])
def test_ready_means_that_a_version_of_the_model_is_available(
    patient_gateway, fickle_server, monkeypatch, state, status
):
    monkeypatch.setattr(fickle_server, "state", state)
    wait_until(lambda: patient_gateway.ask("/readyz").status == status, "the gateway to notice")
    monkeypatch.undo()
    wait_until(lambda: patient_gateway.ask("/readyz").status == 200, "the gateway to notice again")


def test_without_a_model_server_the_gateway_lives_and_says_when_to_come_back(tmp_path):
    with FakeModelServer() as gone:
        pass
    with gateway_for(gone.target, tmp_path) as gateway:
        assert gateway.ask("/livez").status == 200
        for path in ("/readyz", "/generate?seed=1"):
            reply = gateway.ask(path)
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert reply.problem["type"] == "urn:ringo:problem:model-unavailable"


def test_the_gateway_answers_again_when_the_model_server_is_back(tmp_path):
    with FakeModelServer() as server, gateway_for(server.target, tmp_path) as gateway:
        assert gateway.ask("/generate?seed=1").status == 200
        server.stop()
        assert gateway.ask("/generate?seed=2").status == 503
        with FakeModelServer(port=server.port):
            wait_until(lambda: gateway.ask("/generate?seed=2").status == 200, "the gateway's recovery", limit_s=5.0)
