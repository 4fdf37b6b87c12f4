"""Training and export, killed at any moment or out of disk: what was finished stays, and the end is the same."""

import os
import random
import resource
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import LIMIT_S, ROOT, command, wait_until
from tests.training.fit.test_run import fit, output_of, steps_in

STEPS = 120
KILLS = 10


def arrays_of(checkpoint: Path) -> dict[str, bytes]:
    """Return all that a checkpoint holds, by name; fail if it is not whole."""
    with np.load(checkpoint) as file:
        return {name: file[name].tobytes() for name in file.files}


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """A run of STEPS batches that nothing came between."""
    run = tmp_path_factory.mktemp("finished") / "run"
    process = fit(photos, run, "--steps", STEPS)
    output = output_of(process)
    assert process.returncode == 0, output
    return run


def check_as_if_nothing_had_been(photos: Path, run: Path, finished: Path) -> None:
    """Let the run go on to its end, and find there the very bits of the one that nothing came between."""
    process = fit(photos, run, "--steps", STEPS)
    output = output_of(process)
    assert process.returncode == 0, output
    assert arrays_of(run / "checkpoint.npz") == arrays_of(finished / "checkpoint.npz")
    assert (run / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_at_ten_random_moments_a_training_ends_with_the_bits_of_one_that_was_not(photos, finished, tmp_path):
    run, chance = tmp_path / "run", random.Random(8)
    killed_at = []
    for _ in range(KILLS):
        process = fit(photos, run, "--steps", STEPS)
        goal = (max(steps_in(run), default=0)) + chance.randrange(1, STEPS // KILLS)
        wait_until(lambda: max(steps_in(run), default=0) >= goal or process.poll() is not None, "batches", 240)  # noqa: B023
        threading.Event().wait(chance.uniform(0, 0.1))  # anywhere between two batches, or in writing
        process.send_signal(signal.SIGKILL)
        output_of(process)
        killed_at.append(max(steps_in(run)))
    print(f"\nkilled at batches {killed_at}")
    assert killed_at[-1] < STEPS
    check_as_if_nothing_had_been(photos, run, finished)


def check_one_sentence(process: subprocess.Popen, reason: str) -> None:
    output = output_of(process)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("python -m training fit: "), output
    assert reason in output.splitlines()[-1], output


@pytest.mark.chaos
def test_where_no_checkpoint_can_be_written_one_sentence_says_so_and_the_last_one_stays(photos, finished, tmp_path):
    run = tmp_path / "run"
    process = fit(photos, run, "--steps", STEPS)
    wait_until(lambda: (run / "checkpoint.npz").exists(), "a checkpoint", 240)
    process.kill()
    output_of(process)
    kept = (run / "checkpoint.npz").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, hard))  # of any file, for the child to inherit
    try:
        process = fit(photos, run, "--steps", STEPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_one_sentence(process, "File too large")
    assert (run / "checkpoint.npz").read_bytes() == kept
    check_as_if_nothing_had_been(photos, run, finished)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 MB of its own; skipped where we may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("A small disk to fill takes root, and the right to mount.")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, timeout=LIMIT_S)


@pytest.mark.chaos
def test_a_disk_that_fills_in_mid_training_costs_at_most_the_newest_checkpoint(photos, finished, small_disk):
    run = small_disk / "run"
    process = fit(photos, run, "--steps", STEPS)
    wait_until(lambda: (run / "checkpoint.npz").exists(), "a checkpoint", 240)
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while process.poll() is None:
                filler.write(bytes(2**12))
        except OSError:
            pass
        check_one_sentence(process, "No space left on device")
    assert arrays_of(run / "checkpoint.npz")
    (small_disk / "filler").unlink()
    check_as_if_nothing_had_been(photos, run, finished)


@pytest.mark.chaos
def test_an_export_that_is_killed_leaves_no_version_and_the_next_one_is_whole(small_run, tmp_path):
    models, chance = tmp_path / "fruit", random.Random(8)
    words = command("training", "export", small_run, "--to", models)
    for _ in range(4):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: models.exists() and any(models.iterdir()), "something to be written", 240)
        threading.Event().wait(chance.uniform(0, 3))
        process.kill()
        process.wait(LIMIT_S)
        assert not [version for version in models.glob("[0-9]*") if not (version / "model_card.md").exists()]
        shutil.rmtree(models)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (models / "1" / "saved_model.pb").exists()
