"""The golden check of a replica, and how the gateway reports it."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import grpc
import numpy as np
import pytest

from serving.errors import ClientGone, ModelUnavailable
from serving.model_client.client import VERIFIED, ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.telemetry.request_log import record_request
from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.fake_model_server import FakeModelServer, answer, latents, pictures_of, refusing
from tests.gateway_process import gateway_for


def otherwise(seed: int):
    """Return a reply with one pixel of `seed` changed by 1."""

    def reply(request):
        if request.model_spec.signature_name != "generate":
            return answer(request)
        seeds = np.frombuffer(request.inputs["seeds"].tensor_content, np.int64)
        images = pictures_of(latents(seeds), request.model_spec.version.value)
        images[seeds == seed, 0, 0, 0] ^= 1
        return answer(request, images=images)

    return reply


@pytest.fixture
def monitor(client) -> ModelMonitor:
    return ModelMonitor(client)


def test_a_client_knows_its_connection_beside_another_channel_to_the_same_server(server):
    with (
        grpc.insecure_channel(server.target),
        closing(ModelClient(server.target, "apple", predict_timeout_s=LIMIT_S)) as client,
    ):
        assert ModelMonitor(client).golden_check(3).verdict == "proved"


def test_request_ends_when_its_client_disconnected_during_the_golden_check(monitor, server):
    with server.holding(), record_request("GET", {}) as record:
        record.is_abandoned = lambda: True
        with pytest.raises(ClientGone):
            monitor.golden_check(VERSION, deadline_s=time.monotonic() + LIMIT_S / 4)


def test_golden_images_are_rendered_in_batches_of_all_allowed_sizes(monitor, server):
    monitor.golden_check(3)
    sizes = [r.inputs["seeds"].tensor_shape.dim[0].size for r in server.requests if "seeds" in r.inputs]
    assert (sum(sizes), set(sizes)) == (64, {1, 2, 4, 8, 16, 32})


def test_replicas_have_one_fingerprint_only_when_their_bytes_are_equal(client, server):
    fingerprints = []
    for seed in (63, 63, 5):
        server.reply = otherwise(seed)
        fingerprints.append(ModelMonitor(client).golden_check(3).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_replica_is_unproved_when_its_model_has_no_golden_digests(monitor, server, caplog):
    server.reply = refusing(grpc.StatusCode.FAILED_PRECONDITION, "golden")
    check = monitor.golden_check(3)
    assert (check.verdict, check.differing) == ("unproved", None)
    assert check.fingerprint != VERIFIED
    assert "Version 3 has no golden digests" in caplog.text


def test_a_version_is_checked_once_when_many_requests_wait(monitor, server):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(monitor.golden_check, [3] * 17))
    assert [r.model_spec.signature_name for r in server.requests].count("golden") == 1


def test_a_version_is_checked_again_when_it_was_gone_for_a_refresh(monitor, server):
    monitor.golden_check(3)
    server.version = 4
    assert monitor.refresh() == [4]
    assert (monitor.latest_check(3), monitor.knows(3)) == (None, False)
    server.version, server.reply = 3, otherwise(1)
    assert monitor.golden_check(3).verdict == "differs"


def test_a_failed_check_is_tried_again(monitor, server):
    server.reply = refusing(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(ModelUnavailable):
        monitor.golden_check(3)
    server.reply = answer
    assert monitor.golden_check(3).fingerprint == VERIFIED


def test_a_replica_is_checked_again_when_it_is_back_from_an_outage(monitor, server):
    assert (monitor.refresh(), monitor.golden_check(3).fingerprint) == ([3], VERIFIED)
    server.stop()
    with pytest.raises(ModelUnavailable):
        monitor.refresh()
    assert monitor.versions() == [3]  # the last that was known
    assert monitor.latest_check(3) is not None
    with FakeModelServer(port=server.port, version=3, reply=otherwise(1)):

        def is_back():
            with suppress(ModelUnavailable):
                return monitor.refresh()

        wait_until(is_back, "the other replica")
        assert monitor.golden_check(3).verdict == "differs"


def test_a_cached_version_is_404_and_differs_no_more_when_it_is_gone(server, tmp_path):
    server.reply = otherwise(7)
    with gateway_for(server.target, tmp_path, workers=2) as gateway:
        differing = 'ringo_golden_pictures_differing{model_version="3"}'
        assert [gateway.ask("/generate?seed=42&version=3").status for _ in range(8)] == [200] * 8
        assert gateway.metric(differing) == 1
        server.version, server.reply = 4, answer

        def answers() -> set[int]:
            return {gateway.ask("/generate?seed=42&version=3").status for _ in range(8)}

        # Each worker refreshes once a second.
        wait_until(lambda: answers() == {404} and gateway.metric(differing) == 0, "the loss to be noticed by both")
        assert gateway.ask("/generate?seed=42").headers["Ringo-Model-Version"] == "4"


def test_gateway_reports_a_differing_replica_in_log_metric_and_etag(server, tmp_path):
    with gateway_for(server.target, tmp_path) as gateway:
        true = gateway.ask("/generate?seed=42&version=3")
    server.reply = otherwise(7)
    with gateway_for(server.target, tmp_path) as gateway:
        ready = gateway.ask("/readyz")
        assert (ready.status, ready.body) == (200, b"ready: version 3, differs\n")
        assert gateway.metric('ringo_golden_pictures_differing{model_version="3"}') == 1
        wait_until(
            lambda: "renders 1 of 64 golden images of version 3 otherwise" in gateway.log.read_text(),
            "a line in the log",
        )
        other = gateway.ask("/generate?seed=42&version=3")
        kind, _, rest = other.headers["ETag"].strip('"').partition("-")
        assert f'"proved-{rest}"' == true.headers["ETag"]
        assert kind != "proved"
        assert other.headers["Cache-Control"] == "no-cache"
        held = gateway.ask("/generate?seed=42&version=3", If_None_Match=true.headers["ETag"])
        assert held.status == 304
