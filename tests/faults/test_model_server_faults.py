"""The model server dies, hangs, is slow, or is something else: what callers of the gateway see meanwhile."""

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, answer
from tests.faults.load import Load, ask, clients_asking
from tests.faults.processes import embedded, model_server
from tests.gateway_process import gateway_for

NOTICED_S = 2.5  # by a look: one second between two, one for its own limit, half for a busy machine
REFUSED_WITHIN_S = 1.0
BACK_WITHIN_S = 5.0


def seeds(number: int) -> str:
    return f"/generate?seed={number}"


def check_refusals(load: Load) -> None:
    """Every answer is a picture or a 503 that came at once and says when to come back; there was some of each."""
    assert {outcome.status for outcome in load.outcomes} == {200, 503}, load.failed[-1]
    assert {(outcome.kind, outcome.retry_after) for outcome in load.shed} == {("application/problem+json", "1")}
    assert max(outcome.took_s for outcome in load.shed) < REFUSED_WITHIN_S


def kill_and_bring_back(words: tuple[object, ...], folder) -> None:
    with (
        model_server(*words) as server,
        gateway_for(server.target, folder, cache_mb=0) as gateway,
        clients_asking(gateway.port, 16, seeds) as load,
    ):
        wait_until(lambda: len(load.answered) > 50, "pictures")
        server.kill()
        wait_until(lambda: len(load.shed) > 50, "refusals")
        refused_s = time.monotonic() + NOTICED_S
        wait_until(lambda: time.monotonic() > refused_s, "longer than a look takes")
        server.start()
        back_s = time.monotonic()
        served = len(load.answered)
        wait_until(lambda: len(load.answered) > served + 500, "pictures again", limit_s=BACK_WITHIN_S + LIMIT_S)
    check_refusals(load)
    assert max(outcome.ended_s for outcome in load.shed) < back_s + BACK_WITHIN_S
    print(
        f"\nworst refusal {max(o.took_s for o in load.shed):.3f} s, back after {load.shed[-1].ended_s - back_s:.2f} s"
    )
    assert "Traceback" not in gateway.log.read_text()


def test_while_the_model_server_is_dead_all_get_503_at_once_and_pictures_soon_after_its_return(tmp_path):
    kill_and_bring_back((), tmp_path)


@pytest.mark.chaos
def test_so_it_is_with_the_model_that_ships(tmp_path):
    kill_and_bring_back(embedded(), tmp_path)


def test_while_it_hangs_all_but_the_first_get_503_at_once_and_pictures_soon_after_it_goes_on(tmp_path):
    with model_server() as server, gateway_for(server.target, tmp_path, predict_timeout_s=3) as gateway:
        held = gateway.ask("/generate?seed=1")
        server.signal(signal.SIGSTOP)
        hung_s = time.monotonic()
        with clients_asking(gateway.port, 8, lambda number: seeds(number + 100)) as load:
            wait_until(lambda: len(load.shed) > 50, "refusals")
            assert gateway.ask("/generate?seed=1").body == held.body  # what is kept
            assert gateway.ask("/generate?seed=1", If_None_Match=held.headers["ETag"]).status == 304
            wait_until(lambda: any(outcome.status == 504 for outcome in load.outcomes), "the first to be let go")
            server.signal(signal.SIGCONT)
            served = len(load.answered)
            wait_until(lambda: len(load.answered) > served + 50, "pictures again", limit_s=BACK_WITHIN_S)
    assert {outcome.status for outcome in load.failed} == {503, 504}
    assert max(outcome.took_s for outcome in load.shed) < REFUSED_WITHIN_S
    late = [outcome for outcome in load.outcomes if outcome.status == 504]
    assert all(outcome.begun_s < hung_s + NOTICED_S and outcome.took_s < 3 + REFUSED_WITHIN_S for outcome in late)


def test_who_joins_another_has_his_own_time_and_a_slow_model_is_504(tmp_path):
    with FakeModelServer() as server, gateway_for(server.target, tmp_path, predict_timeout_s=2) as gateway:
        gateway.ask("/readyz")
        with server.holding(), ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda _: ask(gateway.port, "/generate?seed=7"), range(8)))
    assert {outcome.status for outcome in outcomes} == {504}
    assert max(outcome.took_s for outcome in outcomes) < 2 + REFUSED_WITHIN_S


def test_who_waits_for_the_golden_pictures_has_his_own_time_and_they_are_painted_all_the_same(tmp_path):
    def reply(request):
        time.sleep(0.4)  # eight calls, so 3.2 s
        return answer(request, version=1)

    with (
        FakeModelServer(reply=reply) as server,
        gateway_for(server.target, tmp_path, predict_timeout_s=1) as gateway,
    ):
        assert gateway.ask("/livez").status == 200  # the worker has started: that takes 3 s on a busy machine
        first = ask(gateway.port, "/generate?seed=1")
        assert (first.status, first.took_s < 1 + REFUSED_WITHIN_S) == (504, True)
        wait_until(lambda: gateway.ask("/generate?seed=1").status == 200, "the golden pictures")


class BusyModelServer(FakeModelServer):
    """Takes longer to tell its versions than anybody waits for it, once it is `busy`."""

    busy = False
    asked = 0

    def GetModelStatus(self, request, context):  # noqa: N802 (the service's own name)
        if self.busy:
            self.asked += 1
            time.sleep(1.2)  # a look has one second
        return super().GetModelStatus(request, context)


def test_a_busy_model_server_that_is_slow_to_tell_its_versions_is_not_taken_for_dead(tmp_path):
    with BusyModelServer() as server, gateway_for(server.target, tmp_path, cache_mb=0) as gateway:
        gateway.ask("/readyz")
        with clients_asking(gateway.port, 2, seeds) as load:
            server.busy = True
            wait_until(lambda: server.asked >= 2, "looks in vain")
    assert not load.failed


@contextmanager
def stranger(says: bytes | None):
    """A server that is none of ours: it takes connections, and says something, or nothing."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        taken = []

        def serve():
            while not ended.is_set():
                try:
                    caller, _ = listener.accept()
                except TimeoutError:
                    continue
                taken.append(caller)
                if says is not None:
                    caller.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(LIMIT_S)
            for caller in taken:
                caller.close()


@pytest.mark.parametrize("says", [None, b"HTTP/1.1 200 OK\r\n\r\nhello", bytes(range(256)) * 64])
def test_something_else_on_its_port_is_503(says, tmp_path):
    with stranger(says) as target, gateway_for(target, tmp_path) as gateway:
        with clients_asking(gateway.port, 4, seeds) as load:
            wait_until(lambda: len(load.outcomes) > 50, "refusals")
        assert gateway.ask("/livez").status == 200
    assert {outcome.status for outcome in load.outcomes} == {503}
    assert max(outcome.took_s for outcome in load.outcomes) < NOTICED_S
    assert "Traceback" not in gateway.log.read_text()


def test_a_version_that_takes_the_place_of_another_under_load_fails_nobody(tmp_path):
    with (
        FakeModelServer(version=1) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        clients_asking(gateway.port, 16, lambda number: seeds(number % 20)) as load,
    ):
        for version in (2, 3, 4):
            wait_until(lambda: len(load.outcomes) > 100 * server.version, "pictures")
            server.version = version
            server.reply = lambda request: answer(request, version=server.version)
        wait_until(lambda: any("version=4" in outcome.address for outcome in load.answered), "the last version")
    assert not load.failed
    assert max(len(digests) for digests in load.digests().values()) == 1
