"""Gateways end or lose a worker while clients ask."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer
from tests.faults.load import clients_asking
from tests.gateway_process import gateway_for

CLIENTS = 16
SEEDS = 40


def seeds(number: int) -> str:
    """Return one of SEEDS addresses: few enough that each is asked for before and after a change."""
    return f"/generate?seed={number % SEEDS}"


def test_requests_in_flight_are_answered_after_sigterm(tmp_path):
    with FakeModelServer() as server, gateway_for(server.target, tmp_path) as gateway:
        gateway.ask("/readyz")
        before = len(server.requests)
        with ThreadPoolExecutor(CLIENTS) as pool, server.holding():
            replies = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in range(CLIENTS)]
            wait_until(lambda: gateway.metric("ringo_requests_in_flight") == CLIENTS, "all requests to be in flight")
            wait_until(lambda: len(server.requests) > before, "the model to be asked")
            gateway.process.terminate()
        assert {reply.result().status for reply in replies} == {200}
        assert gateway.process.wait(LIMIT_S) == 0


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(tmp_path):
    with (
        FakeModelServer() as server,
        gateway_for(server.target, tmp_path, workers=2, cache_mb=0) as gateway,
    ):
        wait_until(lambda: len(gateway.workers()) == 2, "two workers")
        assert gateway.ask("/generate?seed=1").status == 200
        with clients_asking(gateway.port, CLIENTS, seeds) as load:
            wait_until(lambda: len(load.outcomes) > 100, "pictures")
            before = {worker.name for worker in gateway.workers()}
            victim = min(before)
            os.kill(int(victim), signal.SIGKILL)
            killed_s = time.monotonic()
            wait_until(lambda: len({w.name for w in gateway.workers()} - before) == 1, "another worker", limit_s=10)
            served = len(load.answered)
            wait_until(lambda: len(load.answered) > served + 500, "pictures")
    # Who had a connection to the dead one lost it, once; and nobody was told anything false.
    assert len(load.failed) <= 2 * CLIENTS
    assert all(outcome.status is None and outcome.begun_s < killed_s + 1 for outcome in load.failed)
    assert max(len(digests) for digests in load.digests().values()) == 1


def test_killed_outright_a_gateway_leaves_the_port_to_the_next(tmp_path):
    with FakeModelServer() as server, gateway_for(server.target, tmp_path) as gateway:
        assert gateway.ask("/generate?seed=1").status == 200
        workers = gateway.workers()
        gateway.process.kill()
        gateway.process.wait(LIMIT_S)
        wait_until(lambda: not any(worker.exists() for worker in workers), "its workers to end")
        with socket.create_server(("127.0.0.1", gateway.port)):
            pass
