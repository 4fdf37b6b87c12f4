"""More requests than the gateway can serve: excess ones get 503."""

import os
import signal
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import wait_until
from tests.fake_model_server import FakeModelServer
from tests.faults.load import Load, ask, pause, percentile, put_load
from tests.faults.processes import BUNDLED_MODEL, model_server, resident_kb
from tests.gateway_process import gateway_for
from tests.scrape import value

LIMIT = 4  # RINGO_MAX_IN_FLIGHT
DEADLINE_S = 10.0  # the default of RINGO_PREDICT_TIMEOUT_S
SHED_WITHIN_S = 0.1
BACK_WITHIN_S = 5.0


def test_excess_requests_get_503_and_cached_ones_are_served_in_overload(tmp_path):
    with (
        FakeModelServer() as server,
        gateway_for(server.target, tmp_path, max_in_flight=LIMIT) as gateway,
        ThreadPoolExecutor(100) as pool,
    ):
        cached = gateway.ask("/generate?seed=1")
        with server.holding():
            for seed in range(100, 100 + LIMIT):
                pool.submit(gateway.ask, f"/generate?seed={seed}")
            rendered = 'ringo_pictures_total{source="model"}'
            wait_until(lambda: gateway.metric(rendered) == 1 + LIMIT, "as many requests as the limit")
            for refused in pool.map(gateway.ask, [f"/generate?seed={seed}" for seed in range(200, 290)]):
                assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
                assert refused.problem["type"] == "urn:ringo:problem:overloaded"
                assert refused.problem["detail"] == "This server has 4 requests under way; try again later."
            assert gateway.ask("/generate?seed=1").body == cached.body
            assert gateway.ask("/generate?seed=1", If_None_Match=cached.headers["ETag"]).status == 304
            for path in ("/livez", "/readyz", "/", "/about", "/docs"):
                assert gateway.ask(path).status == 200
        wait_until(lambda: gateway.ask("/generate?seed=2").status == 200, "an image after the overload")


def test_sheet_counts_as_a_request_for_every_two_images(tmp_path):
    rendered = 'ringo_pictures_total{source="model"}'
    with (
        FakeModelServer() as server,
        gateway_for(server.target, tmp_path, max_in_flight=LIMIT) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        assert gateway.ask("/generate?seed=1").status == 200
        with server.holding():
            sheet = pool.submit(gateway.ask, f"/grid?seeds=2-{2 * LIMIT + 3}")  # alone, as it exceeds the limit
            wait_until(lambda: gateway.metric(rendered) == 2, "the sheet's call")
            assert gateway.ask("/generate?seed=100").status == 503
        assert sheet.result().status == 200
        with server.holding():
            image = pool.submit(gateway.ask, "/generate?seed=100")
            wait_until(lambda: gateway.metric(rendered) == 3, "the image's call")
            assert gateway.ask(f"/grid?seeds=200-{199 + 2 * LIMIT}").status == 503
        assert image.result().status == 200


def test_model_is_not_called_when_the_client_has_disconnected(tmp_path):
    with FakeModelServer() as server, gateway_for(server.target, tmp_path) as gateway:
        assert gateway.ask("/generate?seed=1").status == 200
        calls, worker = len(server.requests), int(gateway.worker().name)
        os.kill(worker, signal.SIGSTOP)  # so that the requests and their ends arrive before it reads
        for seed in range(50, 70):
            with socket.create_connection(("127.0.0.1", gateway.port)) as client:
                client.sendall(f"GET /generate?seed={seed} HTTP/1.1\r\nHost: ringo\r\n\r\n".encode())
        os.kill(worker, signal.SIGCONT)
        gone = 'ringo_requests_total{model_version="1",outcome="client_gone",resource="generate"}'
        wait_until(lambda: gateway.metric(gone) == 20, "the end of all requests")
        assert len(server.requests) == calls


@pytest.mark.parametrize("unread", [b"", b"x"])  # TLS leaves some at its end
def test_new_clients_get_images_when_max_in_flight_clients_disconnected(tmp_path, unread):
    with (
        FakeModelServer() as server,
        gateway_for(server.target, tmp_path, max_in_flight=64, model_calls=1) as gateway,
        ThreadPoolExecutor(64) as pool,
    ):
        assert gateway.ask("/generate?seed=1").status == 200
        with server.holding():
            clients = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(64)]
            for seed, client in enumerate(clients, 100):
                client.sendall(f"GET /generate?seed={seed} HTTP/1.1\r\nHost: ringo\r\n\r\n".encode())
            wait_until(lambda: gateway.metric("ringo_requests_in_flight") == 64, "all requests")
            for client in clients:
                client.sendall(unread)
                client.close()
            replies = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in range(200, 264)]
            gone = 'ringo_requests_total{model_version="1",outcome="client_gone",resource="generate"}'
            wait_until(lambda: gateway.metric(gone) == 63, "the end of all requests but the one of the call")
        assert {reply.result().status for reply in replies} == {200}


@pytest.mark.parametrize(
    "path", ["/grid?seeds={}-9", "/morph?start={}&end=9", "/generate?seed=1&size=101{}&format=webp"]
)
def test_request_ends_when_its_client_disconnected_while_it_waits(tmp_path, path):
    with FakeModelServer() as server, gateway_for(server.target, tmp_path, predict_timeout_s=100) as gateway:
        wait_until(lambda: gateway.ask("/generate?seed=1").status == 200, "a model that is ready")
        with server.holding():  # the largest images wait for each other, without the model
            clients = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(8)]
            for seed, client in enumerate(clients):
                client.sendall(f"GET {path.format(seed)} HTTP/1.1\r\nHost: ringo\r\n\r\n".encode())
            wait_until(lambda: value(gateway.metrics_port, "ringo_pictures_total") == 9, "the requests")
            for client in clients:
                client.close()
            gone = {"name": "ringo_requests_total", "outcome": "client_gone"}
            wait_until(lambda: value(gateway.metrics_port, **gone) >= 1, "the end of a request", limit_s=50)


@pytest.mark.chaos
def test_accepted_requests_are_in_time_at_ten_times_the_capacity(tmp_path):
    def sheet(number: int) -> str:  # of 64 images, so that the model uses the cores and not these clients
        return f"/grid?seeds={number * 64}-{number * 64 + 63}&format=jpeg"

    with model_server(BUNDLED_MODEL) as server, gateway_for(server.target, tmp_path, cache_mb=0) as gateway:
        wait_until(lambda: gateway.ask("/readyz").status == 200, "a model that is ready")
        with put_load(gateway.port, 8, sheet) as fitting:
            pause(10)
        per_second = len(fitting.answered) / 10
        samples: list[int] = []
        with put_load(gateway.port, 300, sheet, per_second=10 * per_second) as load:
            for _ in range(60):
                pause(1)
                samples.append(resident_kb(gateway.worker()))
            ended_s = time.monotonic()
        # Responses in flight take a few MB, which vary from second to second.
        early_kb, late_kb = (statistics.median(samples[second : second + 10]) for second in (10, 50))
        normal_s, after = percentile(fitting.answered, 100), Load()
        while not after.outcomes or after.outcomes[-1].took_s > normal_s:
            after.outcomes.append(ask(gateway.port, sheet(10**6 + len(after.outcomes))))
        back_s = after.outcomes[-1].ended_s - ended_s
    print(
        f"\nfits: {per_second:.1f}/s; offered {len(load.outcomes) / 60:.1f}/s; "
        f"{len(load.answered)} answered, p99 {percentile(load.answered, 99):.2f} s; "
        f"{len(load.shed)} shed, p99 {percentile(load.shed, 99):.3f} s, worst {percentile(load.shed, 100):.3f} s; "
        f"normal after {back_s:.1f} s; "
        f"memory {early_kb:.0f} kB after 10 to 20 s, {late_kb:.0f} kB after 50 to 60 s"
    )
    assert {outcome.status for outcome in load.outcomes} == {200, 503}
    assert len(load.outcomes) > 8 * 60 * per_second
    assert percentile(load.answered, 99) < DEADLINE_S
    assert percentile(load.shed, 99) < SHED_WITHIN_S
    assert late_kb < 1.05 * early_kb
    assert not after.failed
    assert back_s < BACK_WITHIN_S
