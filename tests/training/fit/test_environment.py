"""`fit` in unusual environments: other settings, terminals, memory limits, `make`."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT, command
from tests.training.fit.test_run import assert_equal_bits, fit_arguments
from training.fit.machine import memory_bytes


def run_in_root(*words: str, **environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    env |= {"MAKEFLAGS": "", "MAKELEVEL": "0"} | environment  # `make test` may be running these tests
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def make_train(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return run_in_root("make", "-o", ".venv/train", "train", *words, **environment)


def test_run_has_equal_bits_and_valid_commands_in_a_hostile_environment(photos, small_run, tmp_path):
    run = tmp_path / "it's りんご"
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.1}')
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    (tmp_path / "dot").symlink_to("/bin/false")
    settings = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_STEPS_PER_EPOCH": "1", "TQDM_DISABLE": "1"}
    settings |= {"TQDM_NCOLS": "abc", "MPLBACKEND": "abc", "MATPLOTLIBRC": str(tmp_path)}
    settings |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = command("training", *fit_arguments(photos, run, "--steps", 4))
    process = run_in_root("bash", "-c", '"$@" 2>&-', "bash", *words, PYTHONIOENCODING="ascii", **settings)
    assert process.returncode == 0
    assert "Graphviz is missing or fails: wrote generator.txt instead of generator.png.\n" in process.stdout
    pasted = run_in_root("bash", "-c", f"printf '%s\n' {process.stdout.splitlines()[-1]}")
    assert pasted.stdout.splitlines()[4:] == [str(run), "--to", "models/it-s"]
    assert_equal_bits(run, small_run)


def test_features_show_no_progress_when_tqdm_is_disabled():
    script = "import numpy as np; from training.evaluate.features import *; image = np.zeros((1, 8, 8, 3), np.uint8)"
    process = run_in_root(sys.executable, "-c", f"{script}; build_extractor()(image, progress='x')", TQDM_DISABLE="1")
    assert process.returncode == 0
    assert "features of" not in process.stderr


@pytest.mark.parametrize("package", ["training", "serving"])
def test_commands_run_when_python_ignores_the_current_folder(package):
    assert run_in_root(sys.executable, "-m", package, "--help", PYTHONSAFEPATH="1").returncode == 0


def test_make_train_writes_and_prints_nothing_else_in_a_dry_run(photos, tmp_path):
    status = ("git", "status", "--porcelain", "--ignored", "--untracked-files=all", "runs", "models")
    before = run_in_root(*status).stdout
    (tmp_path / "it's $5 りんご").symlink_to(photos)
    variables = (f"PHOTOS={tmp_path}/it's $5 りんご", "FLAGS=--dry-run --discriminator plain")
    process = make_train(*variables, PYTHONSAFEPATH="1", TQDM_DISABLE="1")
    assert (process.returncode, process.stderr) == (0, "")
    assert "This takes about" in process.stdout
    assert run_in_root(*status).stdout == before


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {"memory.max": 1000}),
        ("0::/user.slice/fit.scope", {"user.slice/memory.max": 1000, "user.slice/fit.scope/memory.max": "max"}),
        ("0::/a.slice", {"memory.max": 4000, "a.slice/memory.max": 3000, "a.slice/memory.high": 1000}),
        ("3:cpu:/b\n4:hugetlb,memory:/b/c\n0::/", {"memory/b/memory.limit_in_bytes": 1000, "cpu/b/memory.max": 5}),
        ("4:memory:/docker/x", {"memory/memory.limit_in_bytes": 1000}),  # a container's own group is the root
    ],
)
def test_memory_is_the_lowest_limit_of_the_control_groups(tmp_path, groups, files):
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert memory_bytes(tmp_path) == 1000


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
    *_, fit_words, export_words = map(shlex.split, make_train("-n", f"PHOTOS={photos}", *variables).stdout.splitlines())
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
