"""`make train`: names, variables and flags."""

import os
import shlex
import subprocess

import pytest

from tests.conftest import ROOT


def make_train(*words):
    return subprocess.run(
        ["make", "-o", ".venv/train", "train", *words],
        cwd=ROOT,
        env=os.environ | {"MAKEFLAGS": "", "MAKELEVEL": "0"},  # `make test` may be running these tests
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("folder_name", "model"),
    [
        ("cats", "cats"),
        ("My Cats (2025)", "my-cats-2025"),
        ("Apple", "my-apple"),  # models/apple is the bundled model
        ("Äpfel 2026", "apfel-2026"),
        ("りんご", "photos-ce90505d"),
        ("nested/dir/", "dir"),
        ("it's $HOME, $(5", "it-s-home-5"),
    ],
)
def test_make_train_names_the_model_after_the_folder(tmp_path, folder_name, model):
    output = make_train("-n", f"PHOTOS={tmp_path}/{folder_name}").stdout
    *_, fit_words, export_words = map(shlex.split, output.splitlines())
    assert fit_words[3:] == ["fit", f"--photos={tmp_path}/{folder_name}", "--out", f"runs/{model}"]
    assert export_words[3:] == ["export", f"runs/{model}", "--to", f"models/{model}"]


@pytest.mark.parametrize(
    ("variables", "run", "model"),
    [
        (("MODEL=models/cats/",), "runs/cats", "models/cats/"),
        (("MODEL=models/a$b  'c/d, e",), "runs/d, e", "models/a$b  'c/d, e"),
        (("MODEL=", "RUN="), "runs/dogs", "models/dogs"),
        (("RUN=r $x/",), "r $x/", "models/dogs"),
        (("PHOTOS=~",), "runs/eve", "models/eve"),
    ],
)
def test_make_train_takes_run_and_model_as_they_are(monkeypatch, variables, run, model):
    monkeypatch.setenv("HOME", "/home/Eve")
    output = make_train("-n", "PHOTOS=dogs", *variables).stdout
    *_, fit_words, export_words = map(shlex.split, output.splitlines())
    assert fit_words[5:] == ["--out", run]
    assert export_words[3:] == ["export", run, "--to", model]


@pytest.mark.parametrize("flags", ["-h", "--help", "--dry-run", "--size 32 --dry"])
def test_make_train_exports_nothing_when_it_does_not_train(flags):
    last_line = make_train("-n", "PHOTOS=dogs", f"FLAGS={flags}").stdout.splitlines()[-1]
    assert last_line.endswith(f"-m training fit --photos='dogs' --out 'runs/dogs' {flags}")


@pytest.mark.parametrize("flags", ["--out runs/other", "--new --ou='an other'"])
def test_make_train_names_the_variable_when_flags_have_another_run(flags):
    process = make_train("PHOTOS=nowhere", f"FLAGS={flags}")
    assert process.returncode == 2
    assert process.stdout == "FLAGS has --out; set RUN=folder instead.\n"
