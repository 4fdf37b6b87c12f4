"""The Job that serves an older version again, run on folders of this machine."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import LIMIT_S, ROOT, SHIPPED


def roll_back(models: Path, version: str) -> subprocess.CompletedProcess:
    script = ROOT / "k8s" / "jobs" / "roll-back" / "roll_back.py"
    return subprocess.run(
        [sys.executable, str(script), str(models), version], capture_output=True, text=True, timeout=4 * LIMIT_S
    )


def test_a_roll_back_skips_versions_that_do_not_load(tmp_path):
    for version in ("4", "6"):
        shutil.copytree(SHIPPED, tmp_path / version)
    shutil.copytree(SHIPPED, tmp_path / "5")
    (tmp_path / "5" / "saved_model.pb").write_bytes(b"broken")
    done = roll_back(tmp_path, "previous")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Version 7 is a copy of version 4."
    assert (tmp_path / "7" / "saved_model.pb").read_bytes() == (SHIPPED / "saved_model.pb").read_bytes()


def test_a_roll_back_takes_the_version_that_is_named(tmp_path):
    for version in ("4", "5", "6"):
        shutil.copytree(SHIPPED, tmp_path / version)
    assert roll_back(tmp_path, "4").stdout.splitlines()[-1] == "Version 7 is a copy of version 4."


def test_a_roll_back_without_a_version_to_go_back_to_fails_and_adds_nothing(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "4")
    done = roll_back(tmp_path, "previous")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("No version to go back to: asked for previous")
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
