"""Gateways end or lose a worker while clients send requests."""

import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import LIMIT_S, wait_until
from tests.faults.load import put_load
from tests.gateway_process import Gateway

CLIENTS = 16


def test_requests_in_flight_are_answered_after_sigterm(server, start_gateway):
    gateway = start_gateway(server.target)
    before = len(server.requests)
    with ThreadPoolExecutor(CLIENTS) as pool, server.holding():
        replies = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in range(CLIENTS)]
        wait_until(lambda: gateway.metric("ringo_requests_in_flight") == CLIENTS, "all requests to be in flight")
        wait_until(lambda: len(server.requests) > before, "a call of the model")
        gateway.process.terminate()
    assert {reply.result().status for reply in replies} == {200}
    assert gateway.process.wait(LIMIT_S) == 0


def test_only_open_connections_fail_when_a_worker_is_killed(server, start_gateway):
    gateway = start_gateway(server.target, workers=2, cache_mb=0)
    with put_load(gateway.port, CLIENTS, lambda number: f"/generate?seed={number % 40}") as load:
        wait_until(lambda: len(load.answered) > 100 and len(gateway.workers()) == 2, "images")
        before = set(gateway.workers())
        os.kill(int(min(before).name), signal.SIGKILL)
        killed_s = time.monotonic()
        wait_until(lambda: len(set(gateway.workers()) - before) == 1, "another worker", limit_s=10)
        load.wait_for_images(500)
    assert len(load.failed) <= 2 * CLIENTS
    assert all(outcome.status is None and outcome.started_s < killed_s + 1 for outcome in load.failed)
    assert max(map(len, load.digests().values())) == 1


def shared_memory(gateway: Gateway) -> Path:
    """Return the folder in memory that `gateway` has locked."""
    opened = [file.readlink() for file in Path(f"/proc/{gateway.process.pid}/fd").iterdir()]
    return next(path for path in opened if path.match("/dev/shm/ringo-*"))


def test_worker_is_replaced_when_its_shared_memory_was_removed(model_server, start_gateway):
    gateway = start_gateway(model_server.target)
    shutil.rmtree(shared_memory(gateway))
    killed = gateway.worker()
    os.kill(int(killed.name), signal.SIGKILL)
    wait_until(lambda: gateway.workers() not in ([], [killed]), "another worker", limit_s=10)
    assert gateway.ask("/livez").status == 200


def test_port_and_shared_memory_are_free_when_a_gateway_was_killed(model_server, start_gateway):
    living, gateway = (start_gateway(model_server.target, workers=workers) for workers in (1, 2))
    workers, folders = gateway.workers(), [shared_memory(one) for one in (gateway, living)]
    gateway.process.kill()
    gateway.process.wait(LIMIT_S)
    wait_until(lambda: not any(worker.exists() for worker in workers), "the end of its workers")
    with socket.create_server(("127.0.0.1", gateway.port)):
        start_gateway(model_server.target)
        assert [folder.exists() for folder in folders] == [False, True]
