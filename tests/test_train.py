"""Training through its command, as a user meets it: artefacts, Ctrl-C, kill -9, resuming, refusals."""

import csv
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, command, draw_photo, wait_until
from training.config import TrainingConfig
from training.errors import TrainingError
from training.gan import build_gan
from training.train import continue_training

SMALL = ("--image-size", 32, "--batch-size", 8, "--log-every", 1, "--checkpoint-every-s", 0)

# TensorFlow without XLA starts 8 s sooner; JAX without it takes a minute a batch.
COMPILE = {"tensorflow": ("--no-jit-compile",), "jax": ("--jit-compile",)}


def fit(photos: Path, run: Path, *flags: object, backend: str = "tensorflow") -> subprocess.Popen:
    return subprocess.Popen(
        command("training", "fit", "--photos", photos, "--out", run, *SMALL, *COMPILE[backend], *flags),
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen) -> str:
    return process.communicate(timeout=240)[0]


def steps_in(run: Path) -> list[int]:
    """The batches in history.csv; a row that is being written does not count yet."""
    history = run / "history.csv"
    if not history.exists():
        return []
    return [int(line.split(",")[0]) for line in history.read_text().split("\n")[1:-1]]


def test_a_run_folder_holds_everything_about_the_run(small_run):
    found = {p.relative_to(small_run).as_posix() for p in small_run.rglob("*") if p.is_file()}
    assert {"config.json", "photos.json", "history.csv", "losses.png", "checkpoint.npz"} <= found
    assert {f"grids/{step:07d}.png" for step in (0, 2, 4)} <= found
    assert any(name.startswith("tensorboard/events") for name in found)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed: there is no program `dot`")
def test_both_networks_are_drawn(small_run):
    for name in ("generator", "discriminator"):
        with Image.open(small_run / f"{name}.png") as drawing:
            assert drawing.width > 100


@pytest.mark.skipif(shutil.which("dot") is not None, reason="Graphviz is installed: the drawing is tested instead")
def test_without_graphviz_both_networks_are_written_as_tables(small_run):
    assert "to_rgb" in (small_run / "generator.txt").read_text(encoding="utf-8")
    assert "minibatch_standard_deviation" in (small_run / "discriminator.txt").read_text(encoding="utf-8")


def test_a_grid_shows_64_pictures(small_run):
    with Image.open(small_run / "grids" / "0000004.png") as grid:
        assert grid.size == (8 * 32, 8 * 32)


def test_the_grids_become_one_moving_picture_that_ends_with_the_last(small_run):
    with Image.open(small_run / "progress.gif") as progress, Image.open(small_run / "grids" / "0000004.png") as grid:
        assert progress.n_frames == 3
        progress.seek(2)
        shown = np.asarray(progress.convert("RGB"))[-grid.height :].astype(int)
        assert np.abs(shown - np.asarray(grid)).mean() < 12  # of 255: a GIF has 256 colours


def test_the_history_has_a_finite_row_for_every_batch(small_run):
    with (small_run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert np.isfinite([[float(v) for v in row.values()] for row in rows]).all()


def test_killed_twice_with_kill_9_it_resumes_and_ends_with_the_bits_of_an_uninterrupted_run(photos, tmp_path):
    run, flags = tmp_path / "run", ("--steps", 60, "--jit-compile")  # XLA adds up in one order, plain kernels do not
    reached = 0
    for _ in range(2):
        process = fit(photos, run, *flags)
        wait_until(lambda floor=reached + 8: len(steps_in(run)) >= floor, "training goes on", limit_s=240)
        process.kill()
        output_of(process)
        assert process.returncode == -signal.SIGKILL
        reached = len(steps_in(run))
        assert reached < 60
    process = fit(photos, run, *flags)
    output = output_of(process)
    assert process.returncode == 0, output
    assert "Resuming at batch" in output
    assert steps_in(run) == list(range(1, 61))
    assert (run / "grids" / "0000060.png").exists()

    uninterrupted = tmp_path / "uninterrupted"
    output_of(fit(photos, uninterrupted, *flags))
    assert (run / "history.csv").read_text() == (uninterrupted / "history.csv").read_text()
    with np.load(run / "checkpoint.npz") as ours, np.load(uninterrupted / "checkpoint.npz") as theirs:
        assert [name for name in theirs.files if ours[name].tobytes() != theirs[name].tobytes()] == []


def test_ctrl_c_finishes_the_batch_saves_and_says_how_to_go_on(photos, tmp_path):
    run = tmp_path / "run"
    process = fit(photos, run, "--steps", 500)
    wait_until(lambda: steps_in(run), "the first batch", limit_s=240)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode == 130
    assert "the same command goes on from there" in output
    for told in ("/500 [", "images/s=", "g_loss=", "d_loss=", "d_real=", "d_generated="):
        assert told in output
    assert "Traceback" not in output
    with np.load(run / "checkpoint.npz") as checkpoint:
        assert int(checkpoint["optimizer/000"]) == steps_in(run)[-1]


def test_what_the_jax_backend_began_tensorflow_goes_on_with(photos, tmp_path):
    run = tmp_path / "run"
    for steps, backend in ((2, "jax"), (3, "tensorflow")):
        process = fit(photos, run, "--steps", steps, "--grid-every", 1, backend=backend)
        output = output_of(process)
        assert process.returncode == 0, output
        assert steps_in(run) == list(range(1, steps + 1))


def test_a_mixed_folder_of_bad_photos_trains_and_accounts_for_every_file(tmp_path):
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
    (folder / ".hidden.jpg").write_bytes(b"left alone")
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
def test_a_begun_run_refuses_other_hyperparameters(photos, small_run, flags, sentence):
    process = fit(photos, small_run, "--steps", 5, *flags)
    output = output_of(process)
    assert process.returncode == 2
    assert sentence in output
    assert "Traceback" not in output


def test_a_begun_run_refuses_other_photos(photos, small_run, tmp_path):
    fewer = tmp_path / "photos"
    shutil.copytree(photos, fewer)
    (fewer / "00.png").unlink()
    process = fit(fewer, small_run, "--steps", 5)
    assert "The photos differ from those the run began with" in output_of(process)
    assert process.returncode == 2


def test_the_same_photos_in_another_folder_are_the_same_photos(photos, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    process = fit(moved, run, "--steps", 4)
    assert "at batch 4 already: nothing is left to do" in output_of(process)
    assert process.returncode == 0


def test_losses_that_are_not_finite_end_the_training_before_its_checkpoint(tmp_path):
    gan = build_gan(TrainingConfig(image_size=32, steps=3, batch_size=4, jit_compile=False, checkpoint_every_s=0))
    gan.discriminator.set_weights([np.full(w.shape, np.nan) for w in gan.discriminator.weights])
    with pytest.raises(TrainingError, match=r"The losses of batch 1 are not finite"):
        continue_training(gan, np.zeros((8, 32, 32, 3), np.uint8), tmp_path)
    assert not (tmp_path / "checkpoint.npz").exists()


def test_a_torn_row_of_the_history_is_left_out(photos, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    with (run / "history.csv").open("a") as file:
        file.write("4,0.7")  # as a full disk leaves it
    process = fit(photos, run, "--steps", 5)
    output = output_of(process)
    assert process.returncode == 0, output
    assert steps_in(run) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["photos.json", "config.json", "checkpoint.npz"])
def test_a_damaged_file_of_a_run_is_one_sentence_that_names_it(photos, small_run, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / name).write_bytes(b"")
    process = fit(photos, run, "--steps", 5)
    output = output_of(process)
    assert process.returncode == 2
    assert name in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_run_folder_inside_the_photos_is_refused(photos):
    process = fit(photos, photos / "run")
    assert "the grids would become photos" in output_of(process)
    assert process.returncode == 2
    assert not (photos / "run").exists()


def test_a_backend_that_cannot_train_is_one_sentence(photos, tmp_path):
    process = subprocess.run(
        command("training", "fit", "--photos", photos, "--out", tmp_path / "run"),
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "KERAS_BACKEND is 'torch': allowed are tensorflow and jax, installed.\n"


def test_a_run_folder_that_is_a_file_is_one_sentence(photos, tmp_path):
    (tmp_path / "run").touch()
    process = fit(photos, tmp_path / "run", "--steps", 1)
    output = output_of(process)
    assert process.returncode == 2
    assert output.splitlines()[-1].endswith("run: File exists.")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("number", "batch_size", "sentence"),
    [(49, 8, "has 49 usable photos: at least 50 are needed"), (56, 60, "has 56 usable photos: at least 60 are needed")],
)
def test_too_few_photos_are_one_sentence_before_anything_starts(photos, tmp_path, number, batch_size, sentence):
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


def test_a_missing_folder_is_one_sentence(tmp_path):
    process = fit(tmp_path / "nowhere", tmp_path / "run")
    output = output_of(process)
    assert process.returncode == 2
    assert "nowhere" in output
    assert "Traceback" not in output
