"""`fit` with few flags: choices, output and resuming."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, command, draw_photo, with_backend
from training.__main__ import main
from training.config import TrainingConfig
from training.fit.machine import measure_step_s
from training.model.gan import build_gan

FEW_IMAGES = ("--evaluate-count", "50")
QUICK = ("--log-every", "1", "--no-jit-compile", "--discriminator", "plain")


def fit(photos, run, *flags):
    """Run `fit` in this process; return its exit status."""
    return main(["fit", "--photos", str(photos), "--out", str(run), *QUICK, *flags])


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_dry_run_prints_plan_and_duration_and_writes_nothing(photos, tmp_path, capsys):
    files = sorted(tmp_path.rglob("*"))
    assert fit(photos, tmp_path / "run", "--dry-run", "--batch-size", "4", "--preset", "cpu") == 0
    output = capsys.readouterr().out
    for name in ("image_size", "preset", "batch_size", "jit_compile", "steps"):
        assert f"\n  {name} " in output
    assert "32     " in output.split("image_size")[1].splitlines()[0]  # the photos have 40 px
    assert "100,000 images" in output
    assert "This takes about" in output
    assert sorted(tmp_path.rglob("*")) == files


def test_fit_points_to_the_progress_line_when_the_run_is_short(photos, tmp_path, capsys):
    assert fit(photos, tmp_path / "run", "--steps", "1", "--no-keep-best") == 0
    captured = capsys.readouterr()
    assert "The progress line `fit:` shows the remaining time." in captured.out
    assert "\rfit: " in captured.err


def test_same_command_resumes_with_the_settings_of_the_run(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(photos, run, "--steps", "2", "--seed", "3", *FEW_IMAGES) == 0
    first_config = config_of(run)
    assert (first_config["image_size"], first_config["batch_size"], first_config["seed"]) == (32, 16, 3)
    # This machine would choose another limit, but the run keeps its own.
    config = TrainingConfig(**first_config | {"memory_limit_mib": 77})
    (run / "config.json").write_text(config.to_json())
    capsys.readouterr()
    assert fit(photos, run, "--steps", "3", *FEW_IMAGES) == 0
    output = capsys.readouterr().out
    assert "Resuming at batch 2." in output
    assert "settings for" not in output
    assert "All 3 batches are done." in output
    assert config_of(run) == first_config | {"memory_limit_mib": 77, "steps": 3}


def test_dry_run_changes_nothing_when_the_run_exists(photos, small_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in small_run.rglob("*")}
    assert main(["fit", "--photos", str(photos), "--out", str(small_run), "--dry-run", "--steps", "9"]) == 0
    assert "is at batch 4 of 9. Settings without a flag come from its config.json." in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in small_run.rglob("*")} == before


def test_fit_changes_nothing_when_more_steps_are_done_already(photos, small_run, tmp_path, capsys):
    run, moved_photos = shutil.copytree(small_run, tmp_path / "run"), shutil.copytree(photos, tmp_path / "moved")
    assert fit(moved_photos, run, "--steps", "3") == 0
    output = capsys.readouterr().out
    assert f"{run} has 4 batches already, more than --steps 3, and keeps them." in output
    assert "All 4 batches are done." in output
    assert config_of(run) == config_of(small_run)


def test_measuring_does_not_change_later_weights():
    config = TrainingConfig(image_size=32, discriminator="plain", batch_size=2, jit_compile=False)
    before = build_gan(config).get_weights()
    assert 0 < measure_step_s(config) < 60
    assert all(np.array_equal(a, b) for a, b in zip(before, build_gan(config).get_weights(), strict=True))


def test_fit_does_not_import_keras_when_photos_are_too_few(folder, tmp_path):
    draw_photo(0).save(folder / "0.png")
    call = f"main(['fit', '--photos', {str(folder)!r}, '--out', {str(tmp_path / 'run')!r}]) == 2"
    script = f"import sys; from training.__main__ import main; sys.exit(not {call} or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def keep_photos(count):
    def delete_others(folder):
        for photo in sorted((folder / "photos").iterdir())[count:]:
            photo.unlink()

    return delete_others


def plan_nine_steps(folder):
    config = TrainingConfig(**config_of(folder / "run") | {"steps": 9})
    (folder / "run" / "config.json").write_text(config.to_json())


def truncate(name):
    return lambda folder: (folder / "run" / name).write_bytes(b"")


def change_nothing(folder):
    pass


@pytest.mark.parametrize(
    ("change", "out", "flags", "sentence"),
    [
        (change_nothing, "run", ("--batch-size", "9"), "batch_size is 9, but the run began with 8"),
        (keep_photos(55), "run", (), "The photos, their names or their decoding differ from those in"),
        (plan_nine_steps, "run", ("--steps", "3"), "run is at batch 4 of 9; set it to 4 or more."),
        (truncate("photos.json"), "run", (), "photos.json"),
        (truncate("config.json"), "run", (), "config.json"),
        (truncate("checkpoint.npz"), "run", (), "checkpoint.npz"),
        (change_nothing, "photos/run", (), "so its grids would become photos"),
        (change_nothing, "file", (), "file is not a folder; set --out to a folder."),
        (change_nothing, "file/run", (), "file is not a folder; set --out to a folder."),
        (change_nothing, "link", (), "link is not a folder; set --out to a folder."),
        (keep_photos(49), "new", (), "has 49 usable photos, fewer than 50; add photos."),
        (keep_photos(49), "new", ("--dry-run",), "has 49 usable photos, fewer than 50; add photos."),
        (keep_photos(0), "new", ("--dry-run",), "has no files"),
        (change_nothing, "new", ("--batch-size", "51"), "(6 more are held out) do not fill a batch of 51"),
        (lambda folder: (folder / "photos").rename(folder / "moved"), "new", (), "No such file or directory"),
    ],
)
def test_fit_is_refused_with_one_sentence_and_writes_nothing(
    photos, small_run, tmp_path, capsys, change, out, flags, sentence
):
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    change(tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert fit(tmp_path / "photos", tmp_path / out, "--steps", "5", *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m training fit: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert "Measuring" not in captured.out
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_fit_is_refused_when_the_backend_cannot_train(photos, tmp_path):
    process = subprocess.run(
        command("training", "fit", "--photos", photos, "--out", tmp_path / "run"),
        cwd=ROOT,
        env=with_backend("torch"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (2, "")
    sentence = "KERAS_BACKEND is 'torch', which is unknown or not installed; set it to tensorflow or jax."
    assert process.stderr == f"python -m training fit: {sentence}\n"


@pytest.mark.parametrize(
    ("folder_name", "model"),
    [
        ("cats", "cats"),
        ("My Cats (2025)", "my-cats-2025"),
        ("Apple", "my-apple"),  # models/apple is the bundled model
        ("りんご", "photos"),
        ("nested/dir/", "dir"),
    ],
)
def test_make_train_names_the_model_after_the_folder(tmp_path, folder_name, model):
    output = subprocess.run(
        ["make", "--dry-run", "train", f"PHOTOS={tmp_path}/{folder_name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert f'--out "runs/{model}"' in output
    assert f'--to "models/{model}"' in output
