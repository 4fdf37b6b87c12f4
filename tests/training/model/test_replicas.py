"""Several replicas on one machine: two devices, and two processes."""

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
from training.model.replicas import strategy_scope

RUN_FLAGS = "--image-size 32 --discriminator plain --batch-size 8 --log-every 1 --no-jit-compile"

TWO_DEVICES = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def start_process(arguments: list[str], **environment: str) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, **environment}, **streams)


def fit_on_two_devices(photos: Path, run: Path, *flags: object) -> subprocess.Popen:
    arguments = ("fit", "--photos", photos, "--out", run, "--strategy", "mirrored", *RUN_FLAGS.split(), *flags)
    return start_process([sys.executable, "-c", TWO_DEVICES, *map(str, arguments)])


def fit_on_two_workers(photos: Path, run: Path, *flags: object) -> list[subprocess.Popen]:
    """Return the processes of two workers, the chief first."""
    arguments = (
        "fit",
        "--photos",
        photos,
        "--out",
        run,
        "--strategy",
        "multi-worker",
        *RUN_FLAGS.split(),
        *flags,
    )
    cluster = {"worker": [f"localhost:{free_port()}", f"localhost:{free_port()}"]}
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    configurations = [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
    return [start_process(command("training", *arguments), TF_CONFIG=text) for text in configurations]


def collect_outputs(processes: list[subprocess.Popen]) -> list[str]:
    return [process.communicate(timeout=240)[0] for process in processes]


def read_losses(run: Path, rows: int | None = None) -> np.ndarray:
    with (run / "history.csv").open(newline="") as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)][:rows])


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Compare up to rounding.

    One device uses another kernel for batch normalisation, and Adam amplifies the difference with each batch.
    """
    np.testing.assert_allclose(actual[:3], expected[:3], rtol=2e-5)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def shared_run(photos, tmp_path_factory) -> Path:
    """Return the small run, trained on two devices."""
    run = tmp_path_factory.mktemp("shared") / "run"
    process = fit_on_two_devices(photos, run, "--steps", 4)
    (output,) = collect_outputs([process])
    assert process.returncode == 0, output
    assert "2 replicas share each batch" in output
    return run


def test_losses_are_equal_when_two_devices_share_a_batch(shared_run, small_run):
    assert_close(read_losses(shared_run), read_losses(small_run))


def test_chief_names_the_cause_when_another_worker_is_killed(photos, small_run, shared_run, tmp_path):
    run = tmp_path / "run"
    chief, other = fit_on_two_workers(photos, run, "--steps", 500)
    history = run / "history.csv"
    wait_until(lambda: history.exists() and history.read_text().count("\n") > 4, "four batches", limit_s=240)
    other.kill()
    output, _ = collect_outputs([chief, other])
    assert chief.returncode == 2
    assert "Another worker stopped or cannot be reached; start all workers again" in output
    assert "Traceback" not in output
    assert_close(read_losses(run, rows=4), read_losses(small_run))
    np.testing.assert_allclose(read_losses(run, rows=4), read_losses(shared_run), rtol=1e-6)  # of the same kernel


def test_only_the_chief_writes_when_workers_resume(photos, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    workers = fit_on_two_workers(photos, run, "--steps", 6)
    outputs = collect_outputs(workers)
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert all("Resuming at batch 4." in output for output in outputs)
    assert read_losses(run)[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_fit_is_refused_when_replicas_cannot_split_a_batch(photos, tmp_path):
    process = fit_on_two_devices(photos, tmp_path / "run", "--batch-size", 9)
    (output,) = collect_outputs([process])
    assert process.returncode == 2
    assert "batch_size is 9, which 2 replicas cannot share equally; set it to a multiple of 2." in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("configuration", [None, "", "{", "[]", '{"cluster": {}}'])
def test_multi_worker_is_refused_when_tf_config_is_wrong(monkeypatch, tmp_path, configuration):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if configuration is not None:
        monkeypatch.setenv("TF_CONFIG", configuration)
    with pytest.raises(TrainingError, match="set it to something like"), strategy_scope("multi-worker", tmp_path):
        pass
