"""Gateways come and go while others ask: told to end, replaced on the same port, or killed outright."""

import os
import signal
import socket
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, answer
from tests.faults.load import Load, clients_asking
from tests.faults.processes import embedded, gateway_on, model_server
from tests.gateway_process import gateway_for

CLIENTS = 16
SEEDS = 40


def seeds(number: int) -> str:
    """Return one of SEEDS addresses: few enough that each is asked for before and after a change."""
    return f"/generate?seed={number % SEEDS}"


def check_nobody_noticed(load: Load) -> None:
    """Every request got a picture, and every address one and the same picture each time."""
    assert not load.failed, (len(load.failed), load.failed[0])
    assert max(len(digests) for digests in load.digests().values()) == 1


@contextmanager
def two_sockets():
    with ExitStack() as open_sockets:
        yield [open_sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]


def roll_out(target: str, folder, *, times: int) -> Load:
    """Replace the gateway `times` times under load, by SIGTERM and a new process on its port; return the load."""
    with two_sockets() as sockets, ExitStack() as gateways:
        gateway = gateways.enter_context(gateway_on(sockets, target, folder, cache_mb=0))
        with clients_asking(gateway.port, CLIENTS, seeds) as load:
            for _ in range(times):
                served = len(load.outcomes)
                wait_until(lambda: len(load.outcomes) > served + 5 * SEEDS, "pictures")  # noqa: B023 (called here)
                gateway.process.terminate()
                gateway = gateways.enter_context(gateway_on(sockets, target, folder, cache_mb=0))
            served = len(load.outcomes)
            wait_until(lambda: len(load.outcomes) > served + 5 * SEEDS, "pictures of the last one")
    return load


def test_a_new_gateway_on_the_socket_of_the_old_one_fails_nobody(tmp_path):
    with FakeModelServer() as server:
        check_nobody_noticed(roll_out(server.target, tmp_path, times=2))


@pytest.mark.chaos
def test_five_of_them_with_the_model_that_ships_fail_nobody(tmp_path):
    with model_server(*embedded()) as server:
        load = roll_out(server.target, tmp_path, times=5)
    print(f"\n{len(load.outcomes)} requests, {len(load.failed)} failed")
    check_nobody_noticed(load)


def test_told_to_end_a_gateway_answers_whom_it_has_let_in_and_frees_the_port_at_once(tmp_path):
    def slowly(request):
        time.sleep(0.5)  # the model's time for every picture
        return answer(request, version=1)

    with FakeModelServer() as server, gateway_for(server.target, tmp_path, cache_mb=0) as gateway:
        gateway.ask("/readyz")
        server.reply = slowly
        with clients_asking(gateway.port, CLIENTS, seeds) as load:
            wait_until(lambda: len(load.outcomes) >= CLIENTS, "pictures")
            gateway.process.terminate()
            wait_until(lambda: load.failed, "the port to be free")
            wait_until(lambda: gateway.process.poll() is not None, "its end")
    # All that failed found nobody at the port.
    assert not [outcome for outcome in load.failed if "ConnectionRefusedError" not in str(outcome.error)]


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
