"""The client of the model server, shared calls, and the golden check of a replica."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from unittest.mock import patch

import grpc
import numpy as np
import pytest

from serving.errors import ClientGone, ModelUnavailable, UnknownVersion
from serving.model_client.client import VERIFIED, ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.telemetry.request_log import record_request
from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.fake_model_server import FakeModelServer, StatusError, answer, refusing, rendering_other_bytes
from tests.gateway_process import Gateway, Reply


@pytest.fixture
def client(server) -> Iterator[ModelClient]:
    with closing(ModelClient(server.target, "apple", predict_timeout_s=LIMIT_S)) as client:
        yield client


@pytest.fixture
def monitor(client) -> ModelMonitor:
    return ModelMonitor(client)


def test_client_reads_a_response_above_the_default_limit_of_grpc(client, server):
    large = np.zeros((64, 256, 256, 3), np.uint8)  # 12.6 MB
    server.reply = lambda request: answer(request, as_content=True, images=large)
    assert client.generate(3, range(64)).shape == large.shape


def test_a_client_knows_its_connection_beside_another_channel_to_the_same_server(server, request):
    with grpc.insecure_channel(server.target):
        assert request.getfixturevalue("monitor").golden_check(3).verdict == "proved"


def test_a_version_is_checked_again_when_the_thread_of_its_check_did_not_start(monitor):
    with patch.object(threading.Thread, "start", None), pytest.raises(TypeError):
        monitor.golden_check(3)
    assert monitor.golden_check(3, deadline_s=time.monotonic() + LIMIT_S).verdict == "proved"


def test_request_ends_when_its_client_disconnected_during_the_golden_check(monitor, server):
    with server.holding(), record_request("GET", {}) as record:
        record.is_abandoned = lambda: True
        with pytest.raises(ClientGone):
            monitor.golden_check(VERSION, deadline_s=time.monotonic() + LIMIT_S / 4)


def test_version_is_checked_once_in_all_sizes_when_many_requests_wait(monitor, server):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(monitor.golden_check, [3] * 17))
    sizes = [r.inputs["seeds"].tensor_shape.dim[0].size for r in server.requests if "seeds" in r.inputs]
    assert (sum(sizes), set(sizes)) == (64, {1, 2, 4, 8, 16, 32})


def test_replicas_have_one_fingerprint_only_when_their_bytes_are_equal(client, server):
    fingerprints = []
    for seed in (63, 63, 5):
        server.reply = rendering_other_bytes(seed)
        fingerprints.append(ModelMonitor(client).golden_check(3).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_replica_is_unproved_when_its_model_has_no_golden_digests(monitor, server, caplog):
    server.reply = refusing(grpc.StatusCode.FAILED_PRECONDITION, "golden")
    check = monitor.golden_check(3)
    assert (check.verdict, check.differing) == ("unproved", None)
    assert check.fingerprint != VERIFIED
    assert "Version 3 has no golden digests" in caplog.text


def test_a_failed_check_is_tried_again(monitor, server):
    server.reply = refusing(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(ModelUnavailable):
        monitor.golden_check(3)
    server.reply = answer
    assert monitor.golden_check(3).fingerprint == VERIFIED


def test_monitor_keeps_no_memory_when_a_version_is_unknown(monitor):
    with pytest.raises(UnknownVersion):
        monitor.golden_check(4)
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is UnknownVersion]


URL = "/generate?seed=42&version=3"
DIFFERING = "ringo_golden_pictures_differing"


def test_gateway_reports_a_differing_replica_until_its_version_is_gone(server, start_gateway):
    def statuses() -> set[int]:
        return {gateway.ask(URL).status for _ in range(8)}

    true = start_gateway(server.target).ask(URL)
    server.reply = rendering_other_bytes(7)
    gateway = start_gateway(server.target, workers=2)
    assert gateway.ask("/readyz").body == b"ready: version 3, differs\n"
    assert (statuses(), gateway.metric(DIFFERING, model_version="3")) == ({200}, 1)
    line = "renders 1 of 64 golden images of version 3 with other bytes"
    wait_until(lambda: line in gateway.log.read_text(), "a line in the log")
    other = gateway.ask(URL)
    kind, _, rest = other.headers["ETag"].strip('"').partition("-")
    assert f'"proved-{rest}"' == true.headers["ETag"]
    assert kind != "proved"
    assert other.headers["Cache-Control"] == "no-cache"
    assert gateway.ask(URL, If_None_Match=true.headers["ETag"]).status == 304
    server.version, server.reply = 4, answer
    # Each worker refreshes once a second.
    wait_until(lambda: statuses() == {404} and gateway.metric(DIFFERING) == 0, "the loss to be noticed by both")
    assert gateway.ask("/generate?seed=42").headers["Ringo-Model-Version"] == "4"


BUSY, WAITING = 1000, range(2000, 2009)


def calls_of(server: FakeModelServer) -> list[list[int]]:
    """Return the seeds of each call for images, without the golden ones."""
    generate = [request for request in server.requests if request.model_spec.signature_name == "generate"]
    seeds = [sorted(memoryview(request.inputs["seeds"].tensor_content).cast("q").tolist()) for request in generate]
    return [found for found in seeds if found[0] >= BUSY]


def ask_while_busy(server: FakeModelServer, gateway: Gateway) -> list[Reply]:
    """Return the responses to requests that waited for a busy model."""
    with ThreadPoolExecutor(1 + len(WAITING)) as pool, server.holding():
        pool.submit(gateway.ask, f"/generate?seed={BUSY}")
        wait_until(lambda: calls_of(server), "the first call")
        others = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in WAITING]
        wait_until(lambda: gateway.rendered() == 1 + len(WAITING), "all requests to wait")
    return [other.result() for other in others]


@pytest.mark.parametrize(
    ("reply", "sizes"),
    [(answer, [1, 8, 1]), (refusing(grpc.StatusCode.FAILED_PRECONDITION, "golden"), [1] * (1 + len(WAITING)))],
)
def test_requests_share_even_batches_when_busy_and_verified(server, start_gateway, reply, sizes):
    server.reply = reply
    gateway = start_gateway(server.target, model_calls=1, cache_mb=0)
    replies = ask_while_busy(server, gateway)
    assert [len(call) for call in calls_of(server)] == sizes
    assert [reply.body for reply in replies] == [gateway.ask(f"/generate?seed={seed}").body for seed in WAITING]


def test_every_request_of_a_batch_gets_503_when_its_call_fails(server, start_gateway):
    def reply(request):
        if calls_of(server):  # not for the golden images
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED)
        return answer(request)

    server.reply = reply
    replies = ask_while_busy(server, start_gateway(server.target, model_calls=1))
    assert [reply.status for reply in replies] == [503] * len(WAITING)
    assert len(calls_of(server)) == 3
