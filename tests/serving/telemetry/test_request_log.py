"""Request ids and metrics of the gateway and the batch server."""

import http.client
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.batch.calls import CODES
from serving.errors import RingoError
from serving.gateway.problems import ANSWERS
from tests.batch_process import batch_request
from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.gateway_process import gateway_for, scrape


def requests_of(port: int) -> dict[tuple[str, str, str], float]:
    """Return how many requests there were, by resource, outcome and version."""
    return {
        (one.labels["resource"], one.labels["outcome"], one.labels["model_version"]): one.value
        for one in scrape(port)
        if one.name == "ringo_requests_total" and one.labels["resource"] not in ("livez", "readyz")
    }


def test_totals_are_right_across_workers(model_server, tmp_path):
    with gateway_for(model_server.target, tmp_path, workers=2) as gateway:
        wait_until(lambda: len(gateway.workers()) == 2, "two workers")
        for unused in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
            gateway.process.send_signal(unused)
        for asleep in gateway.workers():
            os.kill(int(asleep.name), signal.SIGSTOP)
            etag = gateway.ask("/generate?seed=1").headers["ETag"]
            for url, headers in [
                *[("/generate?seed=1", {})] * 4,
                *[("/generate?seed=1", {"If_None_Match": etag})] * 2,
                *[("/grid?seeds=10-19", {})] * 3,
                ("/generate?seed=x", {}),
                ("/nothing", {}),
            ]:
                gateway.ask(url, **headers)
            os.kill(int(asleep.name), signal.SIGCONT)
        known = str(VERSION)
        assert requests_of(gateway.metrics_port) == {
            ("generate", "answered", known): 10,
            ("generate", "not_modified", known): 4,
            ("grid", "answered", known): 6,
            ("generate", "invalid_request", ""): 2,
            ("unknown", "not_found", ""): 2,
        }
        assert gateway.rendered() == 4  # an image and a grid, for each worker
        assert gateway.metric("ringo_pictures_total", source="cache") == 12
        assert gateway.metric("ringo_request_seconds_count", resource="generate") == 16
        assert gateway.metric("ringo_stage_seconds_count", stage="encode") == 4
        assert gateway.metric("ringo_requests_in_flight") == 0
    assert re.findall("Handling signal: (.*)", gateway.log.read_text()) == ["term"]


def test_rows_of_predict_calls_are_counted_by_signature(gateway):
    before = gateway.metric("ringo_predict_rows_sum", signature="generate")
    assert gateway.ask("/grid?seeds=500-508").status == 200
    assert gateway.metric("ringo_predict_rows_sum", signature="generate") == before + 9
    assert gateway.ask("/morph?start=1&end=2&frames=5").status == 200
    assert gateway.metric("ringo_predict_rows_sum", signature="serving_default") == 5


def test_a_request_is_in_flight_until_it_is_answered_or_its_worker_dies(server, start_gateway):
    gateway = start_gateway(server.target)
    before = len(server.requests)
    with ThreadPoolExecutor(2) as pool, server.holding():
        waiting = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in (100, 101)]
        wait_until(lambda: len(server.requests) == before + 2, "both calls of the model")
        assert gateway.metric("ringo_requests_in_flight") == 2
        killed = gateway.worker()
        os.kill(int(killed.name), signal.SIGKILL)
        wait_until(lambda: gateway.workers() not in ([killed], []), "another worker")
        assert gateway.metric("ringo_requests_in_flight") == 0
    for broken in waiting:
        assert isinstance(broken.exception(), ConnectionError | http.client.HTTPException)


def test_an_unknown_version_is_no_label(gateway):
    assert gateway.ask("/generate?seed=1&version=98").status == 404
    assert {version for _, _, version in requests_of(gateway.metrics_port)} <= {"", str(VERSION)}


def test_gateway_and_batch_server_answer_every_error():
    assert set(ANSWERS) == set(CODES) == set(RingoError.__subclasses__())


@pytest.mark.parametrize(
    ("request_id", "is_valid"),
    [
        *((valid, True) for valid in ("a", "Z" * 64, "0198-aB_c.d")),
        *((bad, False) for bad in ("", "Z" * 65, "a b", "{}")),
    ],
)
def test_request_id_of_the_client_is_returned_when_it_is_valid(gateway, batch, request_id, is_valid):
    reply = gateway.ask("/generate?seed=1", X_Request_ID=request_id)
    call = batch.pictures.GenerateBatch(batch_request([1]), metadata=[("x-request-id", request_id)], timeout=LIMIT_S)
    assert len(list(call)) == 1
    for returned in (reply.headers["X-Request-ID"], dict(call.initial_metadata())["x-request-id"]):
        assert returned == request_id if is_valid else int(returned, 16) and len(returned) == 16


@pytest.mark.parametrize("path", ["/generate?seed=1", "/livez", "/static/docs.css", "/generate?seed=x", "/nothing"])
def test_every_response_has_a_request_id_of_its_own_and_a_problem_names_it(gateway, path):
    first, second = gateway.ask(path), gateway.ask(path)
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    if first.status >= 400:
        assert first.problem["request_id"] == first.headers["X-Request-ID"]
