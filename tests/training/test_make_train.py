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
    ("photos", "variables", "run", "model"),
    [
        ("My Cats (2025)", (), "runs/my-cats-2025", "models/my-cats-2025"),
        ("Apple", (), "runs/my-apple", "models/my-apple"),  # models/apple is the bundled model
        ("Äpfel 2026", (), "runs/apfel-2026", "models/apfel-2026"),
        ("りんご", (), "runs/photos-ce90505d", "models/photos-ce90505d"),
        ("nested/dir/", (), "runs/dir", "models/dir"),
        ("it's $HOME, $(5", (), "runs/it-s-home-5", "models/it-s-home-5"),
        ("~", (), "runs/eve", "models/eve"),
        ("dogs", ("MODEL=", "RUN="), "runs/dogs", "models/dogs"),
        ("dogs", ("MODEL=models/cats/",), "runs/cats", "models/cats/"),
        ("dogs", ("MODEL=models/a$b  'c/d, e",), "runs/d, e", "models/a$b  'c/d, e"),
        ("dogs", ("RUN=r $x/",), "r $x/", "models/dogs"),
    ],
)
def test_make_train_names_run_and_model(monkeypatch, photos, variables, run, model):
    monkeypatch.setenv("HOME", "/home/Eve")
    output = make_train("-n", f"PHOTOS={photos}", *variables).stdout
    *_, fit_words, export_words = map(shlex.split, output.splitlines())
    assert fit_words[3:] == ["fit", f"--photos={photos}", "--out", run]
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
