"""The locks in requirements/ contain the packages that the images import."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions

from tests.conftest import LIMIT_S, ROOT


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that are loaded after `statement`."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, timeout=LIMIT_S).split())


def test_training_lock_contains_all_imports_of_the_model_server():
    locked = set(re.findall("^([a-z0-9-]+)==", (ROOT / "requirements" / "train.txt").read_text(), re.MULTILINE))
    # `import grpc` tries grpc_tools, grpc_health and grpc_reflection, which are optional.
    packages = packages_distributions()
    modules = imported_by("import serving.model_server.server") - imported_by("import grpc")
    for module in modules & packages.keys():
        assert locked & {name.lower().replace("_", "-") for name in packages[module]}, module
