"""The script of the roll-back Job, on folders of this machine."""

import runpy
import shutil
import subprocess
import sys

import pytest

from tests.conftest import BUNDLED, LIMIT_S, ROOT

SCRIPT = ROOT / "k8s" / "jobs" / "roll-back" / "roll_back.py"


@pytest.fixture
def models(tmp_path):
    """Versions 4, 5 and 6 of the bundled model; 5 is broken."""
    for version in ("4", "5", "6"):
        shutil.copytree(BUNDLED, tmp_path / version)
    (tmp_path / "5" / "saved_model.pb").write_bytes(b"broken")
    return tmp_path


@pytest.mark.parametrize(("chosen", "copied"), [("previous", 4), ("6", 6)])
def test_roll_back_copies_the_chosen_version_and_skips_broken_ones(models, chosen, copied):
    assert runpy.run_path(str(SCRIPT))["roll_back"](models, chosen) == f"Version 7 is a copy of version {copied}."
    assert (models / "7" / "saved_model.pb").read_bytes() == (BUNDLED / "saved_model.pb").read_bytes()


def test_roll_back_fails_and_copies_nothing_when_no_version_fits(models):
    done = subprocess.run([sys.executable, SCRIPT, models, "3"], capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"No version to go back to: asked for 3, versions in {models}: 4, 5, 6.\n"
    assert {path.name for path in models.iterdir()} == {"4", "5", "6"}
