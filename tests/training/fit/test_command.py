"""`fit` with hardly a flag: what it chooses, says, keeps for resuming, and leaves alone."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, draw_photo
from training.__main__ import main
from training.config import TrainingConfig
from training.fit.machine import measure_step_s
from training.model.gan import build_gan

QUICK = ("--log-every", "1", "--no-jit-compile", "--discriminator", "plain")


def fit(photos, run, *flags):
    """Return the exit status of `fit`, in this process: TensorFlow is loaded already."""
    return main(["fit", "--photos", str(photos), "--out", str(run), *QUICK, *flags])


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_a_dry_run_tells_the_plan_and_how_long_it_takes_and_writes_nothing(photos, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert fit(photos, tmp_path / "run", "--dry-run", "--batch-size", "4", "--preset", "cpu") == 0
    said = capsys.readouterr().out
    for name in ("image_size", "preset", "batch_size", "jit_compile", "steps"):
        assert f"\n  {name} " in said
    assert "32     " in said.split("image_size")[1].splitlines()[0]  # of photos of 40 px
    assert "100,000 images" in said
    assert "This takes about" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_too_short_to_be_measured_says_which_line_tells_how_long_it_takes(photos, tmp_path, capsys):
    assert fit(photos, tmp_path / "run", "--steps", "1", "--no-keep-best") == 0
    said = capsys.readouterr()
    assert "The line that begins with `fit:` tells how long it takes." in said.out
    assert "\rfit: " in said.err


def test_the_same_command_resumes_with_what_the_run_began_with(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(photos, run, "--steps", "2", "--seed", "3") == 0
    began = config_of(run)
    assert (began["image_size"], began["batch_size"], began["seed"]) == (32, 16, 3)
    # A machine that would choose otherwise today: nothing is chosen.
    config = TrainingConfig(**began | {"memory_limit_mib": 77})
    (run / "config.json").write_text(config.to_json())
    capsys.readouterr()
    assert fit(photos, run, "--steps", "3") == 0
    said = capsys.readouterr().out
    assert "Resuming at batch 2." in said
    assert "settings for" not in said
    assert "All 3 batches are done." in said
    assert config_of(run) == began | {"memory_limit_mib": 77, "steps": 3}


def test_a_dry_run_of_a_run_that_has_begun_changes_nothing(photos, small_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in small_run.rglob("*")}
    assert main(["fit", "--photos", str(photos), "--out", str(small_run), "--dry-run", "--steps", "9"]) == 0
    assert "is at batch 4 of 9: what no flag says is as in its config.json." in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in small_run.rglob("*")} == before


def test_the_command_of_before_a_run_was_extended_changes_nothing(photos, small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert fit(photos, run, "--steps", "3") == 0
    said = capsys.readouterr().out
    assert f"3 batches are done already: {run} has 4, and keeps them." in said
    assert "All 4 batches are done." in said
    assert config_of(run) == config_of(small_run)


def test_fewer_batches_than_an_unfinished_run_has_are_refused(photos, small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / "config.json").write_text(TrainingConfig(**config_of(run) | {"steps": 9}).to_json())
    assert fit(photos, run, "--steps", "3") == 2
    said = capsys.readouterr()
    sentence = f"--steps is 3: allowed is 4 or more, as {run} is at batch 4 of 9."
    assert (said.out, said.err) == ("", f"python -m training fit: {sentence}\n")
    assert config_of(run)["steps"] == 9


def test_measuring_leaves_the_weights_that_follow_as_they_were():
    config = TrainingConfig(image_size=32, discriminator="plain", batch_size=2, jit_compile=False)
    before = build_gan(config).get_weights()
    assert 0 < measure_step_s(config) < 60
    assert all(np.array_equal(a, b) for a, b in zip(before, build_gan(config).get_weights(), strict=True))


def test_too_few_photos_are_refused_before_keras_is_imported(folder, tmp_path):
    draw_photo(0).save(folder / "0.png")
    fit_few = f"main(['fit', '--photos', {str(folder)!r}, '--out', {str(tmp_path / 'run')!r}]) == 2"
    told = f"import sys; from training.__main__ import main; sys.exit(not {fit_few} or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("number", [0, 49])
def test_too_few_photos_are_one_sentence_in_a_dry_run_too(folder, tmp_path, capsys, number):
    for seed in range(number):
        draw_photo(seed).save(folder / f"{seed}.png")
    if number:
        shutil.copy(folder / "0.png", folder / "copy.png")
    assert fit(folder, tmp_path / "run", "--dry-run") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert ("has 49 usable photos, fewer than 50; add photos." if number else "has no files") in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("folder_name", "model"),
    [
        ("cats", "cats"),
        ("My Cats (2025)", "my-cats-2025"),
        ("Apple", "my-apple"),  # models/apple is the one that ships
        ("りんご", "photos"),
        ("nested/dir/", "dir"),
    ],
)
def test_make_train_names_the_model_after_the_folder(tmp_path, folder_name, model):
    said = subprocess.run(
        ["make", "--dry-run", "train", f"PHOTOS={tmp_path}/{folder_name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert f'--out "runs/{model}"' in said
    assert f'--to "models/{model}"' in said
