"""The locks in requirements/ contain the packages that the images import."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions

from tests.conftest import LIMIT_S, ROOT


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that are loaded after `statement`."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    return set(done.stdout.split())


def test_training_lock_contains_all_imports_of_the_model_server():
    lock = (ROOT / "requirements" / "train.txt").read_text(encoding="utf-8")
    locked = set(re.findall("^([a-z0-9-]+)==", lock, re.MULTILINE))
    packages = {
        module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
    }
    optional = imported_by("import grpc")  # which tries grpc_tools, grpc_health and grpc_reflection
    modules = imported_by("import serving.model_server.server") - optional
    missing = [module for module in modules & packages.keys() if not locked & packages[module]]
    assert missing == []
