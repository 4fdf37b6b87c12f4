"""`fit` in unusual environments: settings of other programs, terminals, limits of memory, `make`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LIMIT_S, ROOT, command
from tests.training.fit.test_run import assert_equal_bits, fit, fit_arguments
from training.fit.machine import memory_bytes


def test_run_has_equal_bits_and_pasteable_commands_in_a_hostile_environment(photos, tmp_path):
    run = tmp_path / "it's りんご"
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.1}')
    settings = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_STEPS_PER_EPOCH": "1", "TQDM_DISABLE": "1"}
    process = subprocess.run(
        ["bash", "-c", '"$@" 2>&-', "bash", *command("training", *fit_arguments(photos, run, "--steps", 2))],
        cwd=ROOT,
        env=os.environ | settings | {"PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0
    line = process.stdout.splitlines()[-1]
    words = subprocess.run(["bash", "-c", f"printf '%s\n' {line}"], capture_output=True, text=True, timeout=LIMIT_S)
    assert words.stdout.splitlines()[4:] == [str(run), "--to", "models/it-s"]
    assert fit(photos, tmp_path / "expected", "--steps", 2) == 0
    assert_equal_bits(run, tmp_path / "expected")


def git_status() -> str:
    status = ("git", "status", "--porcelain", "--ignored", "--untracked-files=all", "runs", "models")
    return subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout


def test_make_train_writes_and_prints_nothing_else_in_a_dry_run(photos, tmp_path):
    (tmp_path / "it's $5 りんご").symlink_to(photos)
    flags = "FLAGS=--dry-run --discriminator plain"
    variables = (f"BIN={Path(sys.executable).parent}", f"PHOTOS={tmp_path}/it's $5 りんご", flags)
    before = git_status()
    process = subprocess.run(
        ["make", "-o", ".venv/train", "train", *variables],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("TF_")} | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "This takes about" in process.stdout
    assert git_status() == before


MIB = 2**20


@pytest.mark.parametrize(
    ("groups", "files", "mib"),
    [
        ("0::/\n", {"memory.max": 1536}, 1536),
        (
            "0::/user.slice/app.slice/fit.scope\n",
            {"user.slice/memory.max": 1536, "user.slice/app.slice/memory.max": "max"},
            1536,
        ),
        ("0::/a.slice\n", {"memory.max": 4000, "a.slice/memory.max": 3000, "a.slice/memory.high": 2000}, 2000),
        (
            "3:cpu:/b\n4:hugetlb,memory:/b/c\n0::/\n",
            {"memory/b/memory.limit_in_bytes": 700, "cpu/b/memory.max": 5},
            700,
        ),
        ("4:memory:/docker/x\n", {"memory/memory.limit_in_bytes": 900}, 900),  # the container's own group is the root
    ],
)
def test_memory_is_the_lowest_limit_of_the_control_groups(tmp_path, groups, files, mib):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, limit in files.items():
        file = tmp_path / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit * MIB if isinstance(limit, int) else limit}\n")
    assert memory_bytes(tmp_path) == mib * MIB
