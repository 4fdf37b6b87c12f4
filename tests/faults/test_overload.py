"""More is asked than can be made: what is let in is answered in time, and the rest is told so at once."""

import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.conftest import wait_until
from tests.fake_model_server import FakeModelServer
from tests.faults.load import Load, ask, clients_asking, percentile
from tests.faults.processes import embedded, model_server, resident_kb
from tests.gateway_process import Gateway, gateway_for

PLACES = 4
DEADLINE_S = 10.0  # RINGO_PREDICT_TIMEOUT_S, as it is by default
SHED_WITHIN_S = 0.1
BACK_WITHIN_S = 5.0


@pytest.fixture
def held_server():
    with FakeModelServer() as server:
        yield server


@contextmanager
def full(server: FakeModelServer, gateway: Gateway) -> Iterator[None]:
    """Have all PLACES of `gateway` taken by requests that wait for the model while the `with` block lasts."""
    with ThreadPoolExecutor(PLACES) as pool, server.holding():
        for number in range(PLACES):
            pool.submit(ask, gateway.port, f"/generate?seed={2**40 + number}")
        line = 'ringo_pictures_total{source="model"}'
        wait_until(lambda: gateway.metric(line) >= PLACES + 1, "all places to be taken")
        yield


def test_beyond_its_places_a_gateway_sheds_at_once_and_answers_all_that_needs_no_model(held_server, tmp_path):
    with gateway_for(held_server.target, tmp_path, max_in_flight=PLACES) as gateway:
        kept = gateway.ask("/generate?seed=1")
        with full(held_server, gateway):
            refused = gateway.ask("/generate?seed=2")
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert refused.problem["type"] == "urn:ringo:problem:overloaded"
            assert refused.problem["detail"] == "This server has 4 requests under way; try again later."
            assert gateway.ask("/generate?seed=1").body == kept.body
            assert gateway.ask("/generate?seed=1", If_None_Match=kept.headers["ETag"]).status == 304
            for path in ("/livez", "/readyz", "/", "/about", "/docs"):
                assert gateway.ask(path).status == 200
        assert gateway.ask("/generate?seed=2").status == 200


def test_a_hundred_beyond_its_places_are_shed_at_once(held_server, tmp_path):
    with gateway_for(held_server.target, tmp_path, max_in_flight=PLACES) as gateway:
        gateway.ask("/generate?seed=1")
        with (
            full(held_server, gateway),
            clients_asking(gateway.port, 100, lambda n: f"/generate?seed={n + 10}") as load,
        ):
            wait_until(lambda: len(load.outcomes) >= 500, "refusals")
    assert {outcome.status for outcome in load.outcomes[:500]} == {503}


def test_a_request_whose_caller_has_gone_costs_no_inference(held_server, tmp_path):
    with gateway_for(held_server.target, tmp_path) as gateway:
        assert gateway.ask("/generate?seed=1").status == 200
        asked, worker = len(held_server.requests), int(gateway.worker().name)
        os.kill(worker, signal.SIGSTOP)  # so that they come, and go, before anybody looks
        for seed in range(20):
            with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
                caller.sendall(f"GET /generate?seed={seed + 50} HTTP/1.1\r\nHost: ringo\r\n\r\n".encode())
        os.kill(worker, signal.SIGCONT)
        gone = 'ringo_requests_total{model_version="1",outcome="client_gone",resource="generate"}'
        wait_until(lambda: gateway.metric(gone) == 20, "all to be dropped")
        assert len(held_server.requests) == asked


@pytest.mark.chaos
def test_ten_times_the_load_that_fits_for_a_minute(tmp_path):
    """Sheets of 64 seeds, so that the model and not the clients of this test is what takes the two cores."""

    def sheet(number: int) -> str:
        return f"/grid?seeds={number * 64}-{number * 64 + 63}&format=jpeg"

    with model_server(*embedded()) as server, gateway_for(server.target, tmp_path, cache_mb=0) as gateway:
        wait_until(lambda: gateway.ask("/readyz").status == 200, "a model that is ready")
        with clients_asking(gateway.port, 8, sheet) as fitting:
            wait_for(10)
        per_second = len(fitting.answered) / 10
        samples: list[int] = []
        with clients_asking(gateway.port, 300, sheet, per_second=10 * per_second) as load:
            for _ in range(60):
                wait_for(1)
                samples.append(resident_kb(gateway.worker()))
            ended_s = time.monotonic()
        # Answers that are about to leave are a few MB, more or fewer from second to second.
        early_kb, late_kb = (statistics.median(samples[second : second + 10]) for second in (10, 50))
        usual_s, after = percentile(fitting.answered, 100), Load()
        while not after.outcomes or after.outcomes[-1].took_s > usual_s:
            after.outcomes.append(ask(gateway.port, sheet(10**6 + len(after.outcomes))))
        back_s = after.outcomes[-1].ended_s - ended_s
    print(
        f"\nfits: {per_second:.1f}/s; offered {len(load.outcomes) / 60:.1f}/s; "
        f"{len(load.answered)} answered, p99 {percentile(load.answered, 99):.2f} s; "
        f"{len(load.shed)} shed, p99 {percentile(load.shed, 99):.3f} s, worst {percentile(load.shed, 100):.3f} s; "
        f"as usual after {back_s:.1f} s; "
        f"memory {early_kb:.0f} kB after 10 to 20 s, {late_kb:.0f} kB after 50 to 60 s"
    )
    assert {outcome.status for outcome in load.outcomes} == {200, 503}
    assert len(load.outcomes) > 8 * 60 * per_second  # it was offered
    assert percentile(load.answered, 99) < DEADLINE_S
    assert percentile(load.shed, 99) < SHED_WITHIN_S
    assert late_kb < 1.05 * early_kb
    assert not after.failed
    assert back_s < BACK_WITHIN_S


def wait_for(seconds: float) -> None:
    """Wait for that long: where a time, and not a condition, is what is wanted."""
    threading.Event().wait(seconds)
