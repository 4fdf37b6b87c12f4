"""Whether a replica paints what the exporter did, as the gateway finds out and tells."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import grpc
import numpy as np
import pytest

from serving.errors import ModelTimeout, ModelUnavailable
from serving.model_client.client import VERIFIED, ModelClient
from serving.model_client.monitor import CHECK_BATCHES, ModelMonitor
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, StatusError, answer
from tests.gateway_process import gateway_for


def otherwise(seed: int, version: int):
    """A reply that paints `seed` with one pixel one level off, as another kind of processor may."""

    def reply(request):
        response = answer(request, version=version)
        if request.model_spec.signature_name == "generate":
            images = np.array(response.outputs["images"].int_val, np.uint8).reshape(-1, 6, 8, 3)
            seeds = np.frombuffer(request.inputs["seeds"].tensor_content, np.int64)
            images[seeds == seed, 0, 0, 0] ^= 1
            response = answer(request, version=version, images=images)
        return response

    return reply


def without_golden(request):
    if request.model_spec.signature_name == "golden":
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION)
    return answer(request, version=3)


@pytest.fixture
def server():
    with FakeModelServer(version=3) as server:
        yield server


@pytest.fixture
def monitor(server):
    with closing(ModelClient(server.target, "apple", predict_timeout_s=LIMIT_S)) as client:
        yield ModelMonitor(client)


def test_a_replica_that_paints_the_golden_pictures_is_proved(monitor):
    check = monitor.golden_check(3)
    assert (check.fingerprint, check.verdict, check.differing, check.size) == (VERIFIED, "proved", 0, 8)


def test_golden_pictures_are_painted_in_batches_of_every_allowed_size(monitor, server):
    monitor.golden_check(3)
    sizes = [r.inputs["seeds"].tensor_shape.dim[0].size for r in server.requests if "seeds" in r.inputs]
    assert sizes == list(CHECK_BATCHES)
    assert (sum(sizes), set(sizes)) == (64, {1, 2, 4, 8, 16, 32})


def test_one_pixel_of_one_golden_picture_makes_a_replica_differ(monitor, server, caplog):
    server.reply = otherwise(63, version=3)
    check = monitor.golden_check(3)
    assert (check.verdict, check.differing) == ("differs", 1)
    assert check.fingerprint != VERIFIED
    assert "renders 1 of 64 golden images of version 3 otherwise" in caplog.text


def test_replicas_that_paint_alike_have_one_mark_and_others_another(monitor, server):
    fingerprints = []
    for seed in (63, 63, 5):
        server.reply = otherwise(seed, version=3)
        fingerprints.append(ModelMonitor(monitor._client).golden_check(3).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_model_without_golden_digests_is_unproved(monitor, server, caplog):
    server.reply = without_golden
    check = monitor.golden_check(3)
    assert (check.verdict, check.differing) == ("unproved", None)
    assert check.fingerprint != VERIFIED
    assert "Version 3 carries no golden digests" in caplog.text


def test_a_version_is_proved_once_however_many_ask(monitor, server):
    threads = [threading.Thread(target=monitor.golden_check, args=[3]) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    monitor.golden_check(3)
    assert [r.model_spec.signature_name for r in server.requests].count("golden") == 1


def test_another_version_is_checked_anew(monitor, server):
    monitor.golden_check(3)
    server.version = 4
    monitor.golden_check(4)
    assert [r.model_spec.version.value for r in server.requests if "index" in r.inputs] == [3, 4]


def test_a_version_that_a_refresh_does_not_find_is_forgotten_and_checked_anew(monitor, server):
    monitor.golden_check(3)
    server.version = 4
    assert monitor.refresh() == [4]
    assert (monitor.latest_check(3), monitor.knows(3)) == (None, False)
    server.version, server.reply = 3, otherwise(1, version=3)
    assert monitor.golden_check(3).verdict == "differs"


class LateStatusServer(FakeModelServer):
    """Sends its first status only after `let_go`, as it was when it was asked."""

    let_go = threading.Event()
    asked = threading.Event()

    def GetModelStatus(self, request, context):  # noqa: N802 (the service's own name)
        status = super().GetModelStatus(request, context)
        if not self.asked.is_set():
            self.asked.set()
            self.let_go.wait(LIMIT_S)
        return status


def test_a_check_that_ends_during_a_refresh_is_kept():
    with (
        LateStatusServer(version=3) as server,
        closing(ModelClient(server.target, "apple", predict_timeout_s=LIMIT_S)) as client,
        ThreadPoolExecutor() as pool,
    ):
        monitor = ModelMonitor(client)
        refreshed = pool.submit(monitor.refresh)
        assert server.asked.wait(LIMIT_S)
        server.version = 4
        monitor.golden_check(4)
        server.let_go.set()
        with suppress(ModelTimeout):  # one that was late, on a busy machine
            refreshed.result(LIMIT_S)
        assert monitor.latest_check(4) is not None


def test_while_the_model_server_is_away_nothing_is_forgotten(monitor, server):
    monitor.golden_check(3)
    server.stop()
    with pytest.raises(ModelUnavailable):
        monitor.refresh()
    assert monitor.latest_check(3) is not None


def test_a_failed_proof_is_tried_again(monitor, server):
    def refuse(request):
        raise StatusError(grpc.StatusCode.UNAVAILABLE)

    server.reply = refuse
    with pytest.raises(ModelUnavailable):
        monitor.golden_check(3)
    server.reply = lambda request: answer(request, version=3)
    assert monitor.golden_check(3).fingerprint == VERIFIED


def test_what_comes_back_from_an_outage_is_checked_anew(monitor, server):
    assert (monitor.refresh(), monitor.golden_check(3).fingerprint) == ([3], VERIFIED)
    server.stop()
    with pytest.raises(ModelUnavailable):
        monitor.refresh()
    assert monitor.versions() == [3]  # the last that was known
    with FakeModelServer(port=server.port, version=3, reply=otherwise(1, version=3)):

        def is_back():
            try:
                return monitor.refresh()
            except ModelUnavailable:
                return False

        wait_until(is_back, "the other replica")
        assert monitor.golden_check(3).verdict == "differs"


def test_a_version_that_is_gone_is_404_though_kept_and_differs_no_more(server, tmp_path):
    server.reply = otherwise(7, version=3)
    with gateway_for(server.target, tmp_path, workers=2) as gateway:
        differing = 'ringo_golden_pictures_differing{model_version="3"}'
        assert [gateway.ask("/generate?seed=42&version=3").status for _ in range(8)] == [200] * 8
        assert gateway.metric(differing) == 1
        server.version, server.reply = 4, lambda request: answer(request, version=4)

        def answers() -> set[int]:
            return {gateway.ask("/generate?seed=42&version=3").status for _ in range(8)}

        # Each worker looks for itself, once a second.
        wait_until(lambda: answers() == {404} and gateway.metric(differing) == 0, "the loss to be noticed by both")
        assert gateway.ask("/generate?seed=42").headers["Ringo-Model-Version"] == "4"


def test_a_replica_that_differs_is_ready_and_says_so_in_log_metric_and_etag(server, tmp_path):
    with gateway_for(server.target, tmp_path) as gateway:
        true = gateway.ask("/generate?seed=42&version=3")
        assert gateway.metric('ringo_golden_pictures_differing{model_version="3"}') == 0
    server.reply = otherwise(7, version=3)
    with gateway_for(server.target, tmp_path) as gateway:
        ready = gateway.ask("/readyz")
        assert (ready.status, ready.body) == (200, b"ready: version 3, differs\n")
        assert gateway.metric('ringo_golden_pictures_differing{model_version="3"}') == 1
        wait_until(lambda: "golden images of version 3 otherwise" in gateway.log.read_text(), "a line in the log")
        other = gateway.ask("/generate?seed=42&version=3")
        kind, _, rest = other.headers["ETag"].strip('"').partition("-")
        assert f'"proved-{rest}"' == true.headers["ETag"]
        assert kind != "proved"
        assert other.headers["Cache-Control"] == "no-cache"  # for ever is for the proved
        held = gateway.ask("/generate?seed=42&version=3", If_None_Match=true.headers["ETag"])
        assert held.status == 304  # who holds the proved picture needs no other
