"""Batch servers end and start again while `paint` requests images."""

import signal
from contextlib import ExitStack

import pytest

from tests.batch_process import batch_for
from tests.conftest import LIMIT_S, wait_until
from tests.faults.processes import BUNDLED_MODEL, model_server
from tests.gateway_process import free_port
from tests.serving.paint.conftest import rows, running_paint

STEP = 300  # images between two ends


@pytest.mark.parametrize(
    ("models", "ends"),
    [
        (None, [signal.SIGTERM, signal.SIGKILL]),
        pytest.param(BUNDLED_MODEL, [signal.SIGTERM] * 5, marks=pytest.mark.chaos),
        pytest.param(BUNDLED_MODEL, [signal.SIGKILL] * 5, marks=pytest.mark.chaos),
    ],
)
def test_clients_lose_no_image_when_a_batch_server_is_replaced_or_killed(tmp_path, models, ends):
    settings = {"batch_port": free_port(), "batch_metrics_port": free_port(), "batch_drain_s": 0.5}
    out, seeds = tmp_path / "out", range(STEP * (len(ends) + 5))
    with ExitStack() as servers:
        target = servers.enter_context(model_server(models)).target
        batch = servers.enter_context(batch_for(target, tmp_path, **settings))
        with running_paint(batch, out, "--streams", 16, seeds=f"0:{seeds.stop}") as process:
            wait_until(lambda: (out / "manifest.jsonl").exists(), "a manifest")
            for number, end in enumerate(ends, start=1):
                wait_until(lambda: len(rows(out)) >= number * STEP, "images")  # noqa: B023 (is called here)
                batch.process.send_signal(end)
                batch.process.wait(LIMIT_S)
                batch = servers.enter_context(batch_for(target, tmp_path, **settings))
            output = process.communicate(timeout=4 * LIMIT_S)
            assert process.returncode == 0, output
        found = rows(out)
        assert [row["seed"] for row in found] == list(seeds)
        expected = [picture.sha256.hex() for picture in batch.paint(range(STEP))]
        assert [row["sha256"] for row in found[:STEP]] == expected
