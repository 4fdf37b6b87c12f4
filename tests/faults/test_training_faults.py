"""Training and export that are killed, or whose disk fills."""

import contextlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import LIMIT_S, ROOT, command, wait_until
from tests.training.fit.test_run import assert_equal_bits, output_of, start_fit, steps_in
from training.records import read_batches_done

FLAGS = ("--steps", 120, "--jit-compile")


def finish(photos: Path, run: Path) -> Path:
    """Train `run` to its end; return it."""
    process = start_fit(photos, run, *FLAGS)
    output = output_of(process)
    assert process.returncode == 0, output
    return run


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """Return an uninterrupted run."""
    return finish(photos, tmp_path_factory.mktemp("finished") / "run")


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_training_ends_with_equal_bits_when_killed_ten_times(photos, finished, tmp_path):
    run, chance = tmp_path / "run", random.Random(8)
    for kill in range(10):
        process = start_fit(photos, run, *FLAGS)
        batch = 12 * kill + chance.randrange(1, 12)
        wait_until(lambda: max(steps_in(run), default=0) >= batch, f"batch {batch}", 240)  # noqa: B023 (is called here)
        process.kill()
        output_of(process)
    assert steps_in(run)[-1] < 120
    assert_equal_bits(finish(photos, run), finished)


@pytest.mark.chaos
@pytest.mark.parametrize("small_disk", ["100m"], indirect=True)
def test_fit_keeps_its_last_checkpoint_when_the_disk_is_full(photos, finished, small_disk):
    run, filler = small_disk / "run", small_disk / "filler"
    process = start_fit(photos, run, *FLAGS)
    wait_until(lambda: read_batches_done(run / "checkpoint.npz") > 0, "a checkpoint of a batch", 240)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while process.poll() is None:
            file.write(bytes(2**12))
    *_, last_line = output_of(process).splitlines()
    assert process.returncode == 2
    assert last_line.startswith("python -m training fit: ")
    assert "No space left on device" in last_line
    assert np.load(run / "checkpoint.npz")["step"] > 0
    filler.unlink()
    assert_equal_bits(finish(photos, run), finished)


@pytest.mark.chaos
def test_export_leaves_no_version_when_killed(small_run, tmp_path):
    models = tmp_path / "fruit"
    arguments = command("training", "export", small_run, "--to", models)
    for entries in (1, 3, 5, 7):  # files and folders that exist at the kill
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: sum(len(names + files) for _, names, files in os.walk(models)) >= entries, "files", 240)  # noqa: B023
        process.kill()
        process.wait(LIMIT_S)
        assert all((version / "model_card.md").exists() for version in models.glob("[0-9]*"))
        shutil.rmtree(models)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (models / "1" / "saved_model.pb").exists()
