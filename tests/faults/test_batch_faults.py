"""Batch servers come and go, by SIGTERM and by SIGKILL, while clients paint."""

import signal
import threading
from contextlib import ExitStack, closing, contextmanager

import pytest

from serving.paint.client import PaintingError, PictureClient, Secrets
from serving.rendering.query import Picture
from tests.batch_process import batch_for
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer
from tests.faults.processes import embedded, model_server
from tests.gateway_process import free_port

CLIENTS = 16
SEEDS = range(60)


class Painters:
    """Clients that paint SEEDS again and again, and what became of it."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.rounds = 0  # of SEEDS that one client has whole
        self.errors: list[PaintingError] = []
        self.digests: dict[int, set[str]] = {seed: set() for seed in SEEDS}
        self.wrong = 0
        self._ended = threading.Event()

    def paint(self) -> None:
        with closing(PictureClient(self.target, Secrets(), patience_s=LIMIT_S)) as client:
            version = client.newest_version()
            while not self._ended.is_set():
                try:
                    painted = list(client.paint(list(SEEDS), Picture(seed=0, format="png", version=version)))
                except PaintingError as error:
                    self.errors.append(error)
                    return
                for seed, picture in zip(SEEDS, painted, strict=True):
                    self.wrong += picture.seed != seed
                    self.digests[seed].add(picture.sha256)
                self.rounds += 1

    @contextmanager
    def painting(self):
        threads = [threading.Thread(target=self.paint) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(2 * LIMIT_S)
            assert not any(thread.is_alive() for thread in threads), "a client hangs"


def restart(target: str, folder, ends: list[signal.Signals]) -> Painters:
    """End the batch server by each of `ends` in turn, and start another on its port, while CLIENTS paint."""
    settings = {"batch_port": free_port(), "batch_metrics_port": free_port(), "batch_drain_s": 0.5}
    with ExitStack() as servers:
        batch = servers.enter_context(batch_for(target, folder, **settings))
        painters = Painters(batch.target)
        with painters.painting():
            for end in ends:
                before = painters.rounds
                wait_until(lambda: painters.rounds >= before + CLIENTS, "pictures")  # noqa: B023 (is called here)
                batch.process.send_signal(end)
                batch.process.wait(LIMIT_S)
                batch = servers.enter_context(batch_for(target, folder, **settings))
            before = painters.rounds
            wait_until(lambda: painters.rounds >= before + CLIENTS, "pictures of the last one")
    return painters


def check_nobody_noticed(painters: Painters) -> None:
    assert not painters.errors, painters.errors[0]
    assert painters.wrong == 0
    assert {len(digests) for digests in painters.digests.values()} == {1}


def test_a_batch_server_that_is_replaced_or_killed_costs_its_clients_time_and_no_picture(tmp_path):
    with FakeModelServer() as server:
        check_nobody_noticed(restart(server.target, tmp_path, [signal.SIGTERM, signal.SIGKILL]))


@pytest.mark.chaos
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_so_it_is_five_times_with_the_model_that_ships(end, tmp_path):
    with model_server(*embedded()) as server:
        painters = restart(server.target, tmp_path, [end] * 5)
    print(f"\n{painters.rounds * len(SEEDS)} pictures, {len(painters.errors)} clients failed, {painters.wrong} wrong")
    check_nobody_noticed(painters)
