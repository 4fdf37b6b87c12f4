"""The run folder of `fit`: lock, partial files and renaming."""

import shutil

import pytest

from tests.training.fit.test_command import config_of, fit, read_files
from training.fit.folder import lock_run
from training.records import read_batches_done


def test_fit_is_refused_when_another_process_trains_in_the_folder(photos, small_run, run, capsys):
    with lock_run(run):
        assert fit(photos, run, "--steps", "5") == 2
    assert capsys.readouterr().err.endswith(
        f"Another process trains in {run}; wait until it ends, or choose a new --out.\n"
    )
    assert read_files(run) == read_files(small_run)


def test_fit_removes_partial_files_of_a_killed_process_and_no_others(photos, run):
    others = [run / name for name in ("film.mp4.part", "photos/a.png.0123abcd.part", "0123abcd.part")]
    partials = [run / name for name in ("checkpoint.npz.0123abcd.part", "grids/progress.gif.89abcdef.part")]
    for file in (*others, *partials):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (run / "folder.0123abcd.part").mkdir()
    assert fit(photos, run, "--steps", "4") == 0
    assert [file for file in (*others, *partials) if file.exists()] == others


@pytest.mark.parametrize(
    "names", [("config.json", "history.csv", "grids/photos.png"), ("photos.json",), ("compute.json",)]
)
def test_new_run_keeps_the_files_of_the_previous_one(photos, small_run, tmp_path, capsys, names):
    run = tmp_path / "run"
    for name in (".lock", *names):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small_run / name, run / name)
    before = read_files(run)
    assert fit(photos, run, "--new", "--steps", "1", "--seed", "3") == 0
    assert "The progress line `fit:` shows the remaining time." in capsys.readouterr().out
    config = config_of(run)
    assert (config["image_size"], config["batch_size"], config["seed"]) == (32, 16, 3)
    assert read_batches_done(run / "checkpoint.npz") == 1
    assert read_files(tmp_path / "run-old-1") == before


@pytest.mark.parametrize(
    ("folder_name", "out", "sentence"),
    [
        ("run", ".", "/run in it; choose a new --out."),
        (".", "r" * 250, " cannot be renamed (File name too long); choose a new --out."),
    ],
)
def test_fit_is_refused_when_the_previous_run_cannot_be_renamed(
    photos, small_run, tmp_path, monkeypatch, capsys, folder_name, out, sentence
):
    run = shutil.copytree(small_run, tmp_path / folder_name / out)
    monkeypatch.chdir(tmp_path / folder_name)
    assert fit(photos, out, "--new", "--steps", "1") == 2
    *_, last_line = capsys.readouterr().err.splitlines()
    assert last_line.startswith("python -m training fit: ")
    assert last_line.endswith(sentence)
    assert read_files(run) == read_files(small_run)
