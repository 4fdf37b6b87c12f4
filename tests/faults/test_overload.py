"""The gateway under load: excess requests get 503, and nothing grows."""

import os
import signal
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.faults.load import percentile, put_load
from tests.faults.processes import BUNDLED_MODEL, ModelServer
from tests.gateway_process import Gateway, gateway_for, resident_kb

LIMIT = 4  # RINGO_MAX_IN_FLIGHT
GONE = {"name": "ringo_requests_total", "outcome": "client_gone"}
SOAK_S = 60 * float(os.environ.get("SOAK_MINUTES", "30"))
SHARE = 0.7  # of the capacity
WARM_UP_S = 20.0


def test_excess_requests_get_503_and_cached_ones_are_served_in_overload(server, start_gateway):
    gateway = start_gateway(server.target, max_in_flight=LIMIT)
    cached = gateway.ask("/generate?seed=1")
    with ThreadPoolExecutor(100) as pool, server.holding():
        for seed in range(100, 100 + LIMIT):
            pool.submit(gateway.ask, f"/generate?seed={seed}")
        wait_until(lambda: gateway.rendered() == 1 + LIMIT, "as many requests as the limit")
        for refused in pool.map(gateway.ask, [f"/generate?seed={seed}" for seed in range(200, 290)]):
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert refused.problem["type"] == "urn:ringo:problem:overloaded"
            assert refused.problem["detail"] == "This server has 4 requests under way; try again later."
        assert gateway.ask("/generate?seed=1").body == cached.body
        assert gateway.ask("/generate?seed=1", If_None_Match=cached.headers["ETag"]).status == 304
        for path in ("/livez", "/readyz", "/", "/about", "/docs"):
            assert gateway.ask(path).status == 200
    wait_until(lambda: gateway.ask("/generate?seed=2").status == 200, "an image after the overload")


def test_sheet_counts_as_a_request_for_every_two_images(server, start_gateway):
    gateway = start_gateway(server.target, max_in_flight=LIMIT)
    image, excess = "/generate?seed=100", f"/grid?seeds=2-{2 * LIMIT + 3}"  # the sheet runs alone
    for calls, (running, refused) in enumerate([(excess, image), (image, f"/grid?seeds=200-{199 + 2 * LIMIT}")], 1):
        with ThreadPoolExecutor(1) as pool, server.holding():
            reply = pool.submit(gateway.ask, running)
            wait_until(lambda: gateway.rendered() == calls, "its call of the model")  # noqa: B023 (is called here)
            assert gateway.ask(refused).status == 503
        assert reply.result().status == 200


def request_image(gateway: Gateway, seed: int, path: str = "/generate?seed={}") -> socket.socket:
    """Return a connection that has sent a request."""
    client = socket.create_connection(("127.0.0.1", gateway.port))
    client.sendall(f"GET {path.format(seed)} HTTP/1.1\r\nHost: ringo\r\n\r\n".encode())
    return client


def test_model_is_not_called_when_the_client_has_disconnected(server, start_gateway):
    gateway = start_gateway(server.target)
    calls, worker = len(server.requests), int(gateway.worker().name)
    os.kill(worker, signal.SIGSTOP)  # so that the requests and their ends arrive before it reads
    for seed in range(50, 70):
        request_image(gateway, seed).close()
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: gateway.metric(**GONE) == 20, "the end of all requests")
    assert len(server.requests) == calls


@pytest.mark.parametrize("unread", [b"", b"x"])  # TLS leaves some at its end
def test_new_clients_get_images_when_max_in_flight_clients_disconnected(server, start_gateway, unread):
    gateway = start_gateway(server.target, max_in_flight=64, model_calls=1)
    with ThreadPoolExecutor(64) as pool, server.holding():
        clients = [request_image(gateway, seed) for seed in range(100, 164)]
        wait_until(lambda: gateway.metric("ringo_requests_in_flight") == 64, "all requests")
        for client in clients:
            client.sendall(unread)
            client.close()
        replies = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in range(200, 264)]
        wait_until(lambda: gateway.metric(**GONE) == 63, "the end of all requests but the one of the call")
    assert {reply.result().status for reply in replies} == {200}


def test_a_worker_that_has_answered_is_resident_with_at_most_100_mb(model_server, start_gateway):
    gateway = start_gateway(model_server.target)
    for seed in range(20):
        assert gateway.ask(f"/generate?seed={seed}").status == 200
    with ThreadPoolExecutor(64) as pool:  # the largest images, and as many as wait for the model at a time
        sheets = pool.map(lambda seed: gateway.ask(f"/grid?seeds={seed}-{seed + 3}&columns=2&size=512"), range(64))
        assert {sheet.status for sheet in sheets} <= {200, 503}  # 503 after LARGE_WAIT_S on a busy machine
    assert resident_kb(gateway.worker()) * 1024 <= 100e6


@pytest.mark.parametrize(
    "path", ["/grid?seeds={}-9", "/morph?start={}&end=9", "/generate?seed=1&size=101{}&format=webp"]
)
def test_request_ends_when_its_client_disconnected_while_it_waits(server, start_gateway, path):
    gateway = start_gateway(server.target, predict_timeout_s=100)
    assert gateway.ask("/generate?seed=1").status == 200
    with server.holding():  # the largest images wait for each other, without the model
        clients = [request_image(gateway, seed, path) for seed in range(8)]
        wait_until(lambda: gateway.rendered() == 9, "the requests")
        for client in clients:
            client.close()
        wait_until(lambda: gateway.metric(**GONE) >= 1, "the end of a request", limit_s=50)


@pytest.mark.chaos
def test_accepted_requests_are_in_time_at_ten_times_the_capacity(tmp_path):
    def sheet(number: int) -> str:  # of 64 images, so that the model uses the cores and not these clients
        return f"/grid?seeds={number * 64}-{number * 64 + 63}&format=jpeg"

    with ModelServer(BUNDLED_MODEL) as server, gateway_for(server.target, tmp_path, cache_mb=0) as gateway:
        with put_load(gateway.port, 8, sheet) as fitting:
            time.sleep(10)
        per_second = len(fitting.answered) / 10
        samples: list[int] = []
        with put_load(gateway.port, 300, sheet, per_second=10 * per_second) as load:
            for _ in range(60):
                time.sleep(1)
                samples.append(resident_kb(gateway.worker()))
            ended_s = time.monotonic()
        # Responses in flight take a few MB, which vary from second to second.
        early_kb, late_kb = (statistics.median(samples[second : second + 10]) for second in (10, 50))
        normal_s = percentile(fitting.answered, 100)
        with put_load(gateway.port, 1, lambda number: sheet(number + 10**6)) as after:
            wait_until(lambda: after.outcomes and after.outcomes[-1].took_s <= normal_s, "a normal latency")
        back_s = next(outcome.ended_s for outcome in after.outcomes if outcome.took_s <= normal_s) - ended_s
    print(
        f"\nfits: {per_second:.1f}/s; offered {len(load.outcomes) / 60:.1f}/s; "
        f"{len(load.answered)} answered, p99 {percentile(load.answered, 99):.2f} s; "
        f"{len(load.shed)} shed, p99 {percentile(load.shed, 99):.3f} s, worst {percentile(load.shed, 100):.3f} s; "
        f"normal after {back_s:.1f} s; "
        f"memory {early_kb:.0f} kB after 10 to 20 s, {late_kb:.0f} kB after 50 to 60 s"
    )
    assert {outcome.status for outcome in load.outcomes} == {200, 503}
    assert len(load.outcomes) > 8 * 60 * per_second
    assert percentile(load.answered, 99) < 10  # seconds: the default of RINGO_PREDICT_TIMEOUT_S
    assert percentile(load.shed, 99) < 0.1
    assert late_kb < 1.05 * early_kb
    assert not after.failed
    assert back_s < 5


def mixed(number: int) -> str:
    """Return a URL: of a new image, a cached one, or several."""
    match number % 10:
        case 0:
            return f"/grid?seeds={number}-{number + 3}"
        case 1 | 2:
            return f"/generate?seed={number % 50}"
        case _:
            return f"/generate?seed={number}"


@pytest.mark.chaos
@pytest.mark.timeout(SOAK_S + 300)
def test_nothing_fails_or_grows_at_70_percent_of_the_capacity(tmp_path):
    with ModelServer(BUNDLED_MODEL) as server, gateway_for(server.target, tmp_path, unread=True) as gateway:
        with put_load(gateway.port, 16, mixed) as most:  # this fills the cache, too
            time.sleep(WARM_UP_S)
        per_second = len(most.answered) / WARM_UP_S
        worker, model, samples = gateway.worker(), Path("/proc", str(server.process.pid)), []
        with put_load(gateway.port, 16, lambda n: mixed(n + 10**6), per_second=SHARE * per_second) as load:
            began_s = time.monotonic()
            while time.monotonic() < began_s + SOAK_S:
                time.sleep(SOAK_S / 20)
                samples.append((resident_kb(worker), len(list((worker / "fd").iterdir())), resident_kb(model)))
        assert gateway.worker() == worker
        assert gateway.metric("ringo_log_lines_dropped_total") > 0
    memory, files, of_model = zip(*samples, strict=True)
    p50, p99 = (percentile(load.answered, percent) for percent in (50, 99))
    print(
        f"\n{SOAK_S / 60:g} min at {SHARE * per_second:.0f}/s: {len(load.outcomes)} requests, "
        f"{len(load.failed)} failed, p50 {p50:.3f} s, p99 {p99:.3f} s; "
        f"gateway {memory[1]} to {memory[-1]} kB, {files[1]} to {files[-1]} files; "
        f"model server {of_model[1]} to {of_model[-1]} kB"
    )
    assert not load.failed, load.failed[0]
    assert memory[-1] < 1.05 * memory[1]
    assert of_model[-1] < 1.05 * of_model[1]
    assert max(files) <= files[1] + 4  # a refresh and a probe may be in flight
