"""Batch servers end and start again while `paint` requests images."""

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.batch_process import batch_for
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer
from tests.faults.processes import BUNDLED_MODEL, model_server
from tests.gateway_process import free_port
from tests.serving.paint.test_command import rows, running_paint

STEP = 300  # images between two ends


def check_that_no_image_is_lost(target: str, folder: Path, ends: list[signal.Signals]) -> None:
    """End the batch server by each of `ends` during 16 streams."""
    settings = {"batch_port": free_port(), "batch_metrics_port": free_port(), "batch_drain_s": 0.5}
    out, seeds = folder / "out", range(STEP * (len(ends) + 5))
    with ExitStack() as servers:
        batch = servers.enter_context(batch_for(target, folder, **settings))
        with running_paint(batch, out, "--streams", 16, seeds=f"0:{seeds.stop}") as process:
            wait_until(lambda: (out / "manifest.jsonl").exists(), "a manifest")
            for number, end in enumerate(ends, start=1):
                wait_until(lambda: len(rows(out)) >= number * STEP, "images")  # noqa: B023 (is called here)
                batch.process.send_signal(end)
                batch.process.wait(LIMIT_S)
                batch = servers.enter_context(batch_for(target, folder, **settings))
            output = process.communicate(timeout=4 * LIMIT_S)
            assert process.returncode == 0, output
        found = rows(out)
        assert [row["seed"] for row in found] == list(seeds)
        expected = [picture.sha256.hex() for picture in batch.paint(range(STEP))]
        assert [row["sha256"] for row in found[:STEP]] == expected


def test_clients_lose_no_image_when_a_batch_server_is_replaced_or_killed(tmp_path):
    with FakeModelServer() as server:
        check_that_no_image_is_lost(server.target, tmp_path, [signal.SIGTERM, signal.SIGKILL])


@pytest.mark.chaos
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_clients_of_the_bundled_model_lose_no_image_in_five_restarts(end, tmp_path):
    with model_server(BUNDLED_MODEL) as server:
        check_that_no_image_is_lost(server.target, tmp_path, [end] * 5)
