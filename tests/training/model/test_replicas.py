"""Several replicas on one machine: two devices in one process, and two processes, each as the command starts them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, command, wait_until
from tests.gateway_process import free_port
from training.errors import TrainingError
from training.model.replicas import share_batches

LIKE_SMALL_RUN = (
    "--image-size",
    32,
    "--discriminator",
    "plain",
    "--beta-1",
    0.5,
    "--batch-size",
    8,
    "--log-every",
    1,
    "--no-jit-compile",
)

TWO_DEVICES = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def start(words: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fit_on_two_devices(photos: Path, run: Path, *flags: object) -> subprocess.Popen:
    words = ("fit", "--photos", photos, "--out", run, "--strategy", "mirrored", *LIKE_SMALL_RUN, *flags)
    return start([sys.executable, "-c", TWO_DEVICES, *map(str, words)])


def fit_on_two_workers(photos: Path, run: Path, *flags: object) -> list[subprocess.Popen]:
    """The chief first."""
    words = ("fit", "--photos", photos, "--out", run, "--strategy", "multi-worker", *LIKE_SMALL_RUN, *flags)
    cluster = {"worker": [f"localhost:{free_port()}", f"localhost:{free_port()}"]}
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    return [start(command("training", *words), TF_CONFIG=json.dumps({"cluster": cluster, "task": t})) for t in tasks]


def outputs_of(processes: list[subprocess.Popen]) -> list[str]:
    return [process.communicate(timeout=240)[0] for process in processes]


def losses(run: Path, rows: int | None = None) -> np.ndarray:
    with (run / "history.csv").open(newline="") as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)][:rows])


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Up to rounding, as one device normalises by another kernel; Adam makes more of it with each batch."""
    np.testing.assert_allclose(found[:3], expected[:3], rtol=2e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def shared_run(photos, tmp_path_factory) -> Path:
    """What the small run is, on two devices."""
    run = tmp_path_factory.mktemp("shared") / "run"
    process = fit_on_two_devices(photos, run, "--steps", 4)
    (output,) = outputs_of([process])
    assert process.returncode == 0, output
    assert "2 replicas share each batch" in output
    return run


def test_two_devices_give_the_losses_of_one(shared_run, small_run):
    assert_same(losses(shared_run), losses(small_run))


def test_two_workers_give_the_losses_of_one_and_say_so_when_one_is_killed(photos, small_run, shared_run, tmp_path):
    run = tmp_path / "run"
    chief, other = fit_on_two_workers(photos, run, "--steps", 500)
    history = run / "history.csv"
    wait_until(lambda: history.exists() and history.read_text().count("\n") > 4, "four batches", limit_s=240)
    other.kill()
    output, _ = outputs_of([chief, other])
    assert chief.returncode == 2
    assert "Another worker is gone, or cannot be reached: start all of them again" in output
    assert "Traceback" not in output
    assert_same(losses(run, rows=4), losses(small_run))
    np.testing.assert_allclose(losses(run, rows=4), losses(shared_run), rtol=1e-6)  # which are of the same kernel


def test_all_workers_resume_from_the_checkpoint_and_only_the_chief_writes(photos, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    workers = fit_on_two_workers(photos, run, "--steps", 6)
    outputs = outputs_of(workers)
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert all("Resuming at batch 4." in output for output in outputs)
    assert losses(run)[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_batch_that_cannot_be_shared_is_one_sentence_before_anything_starts(photos, tmp_path):
    process = fit_on_two_devices(photos, tmp_path / "run", "--batch-size", 9)
    (output,) = outputs_of([process])
    assert process.returncode == 2
    assert "batch_size is 9: 2 replicas need a multiple of 2." in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("configuration", [None, "", "{", "[]", '{"cluster": {}}'])
def test_a_cluster_that_is_not_configured_is_one_sentence(monkeypatch, tmp_path, configuration):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if configuration is not None:
        monkeypatch.setenv("TF_CONFIG", configuration)
    with pytest.raises(TrainingError, match="needs TF_CONFIG, such as"), share_batches("multi-worker", tmp_path):
        pass
