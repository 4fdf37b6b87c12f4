"""Container images run read-only and without rights; `make images` builds them."""

import json
import os
import subprocess
import time
from contextlib import contextmanager

import pytest

from serving import __version__
from tests.conftest import BUNDLED, wait_until
from tests.gateway_process import free_port, status_of

ENGINE = os.environ.get("CONTAINER_ENGINE")
SERVE, MODEL, TRAIN = (f"ringo-{name}:{__version__}" for name in ("serve", "model", "train"))
LIMIT_S = 300  # of one command; TensorFlow's first import from a cold disk is slow

HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--user", "10001", "--pids-limit", "128"),
)

pytestmark = pytest.mark.skipif(not ENGINE, reason="CONTAINER_ENGINE names none; `make images` builds and runs these")


def engine(*arguments: object) -> str:
    """Return the stdout of the engine's command; fail with its stderr."""
    command = [str(ENGINE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def container(*arguments: object):
    name = engine("run", "-d", "--network", "host", *arguments)
    try:
        yield name
    finally:
        engine("rm", "-f", name)


def test_gateway_serves_under_all_restrictions_and_ends_in_20_s(model_server):
    port = free_port()
    settings = {"PORT": port, "METRICS_PORT": free_port(), "MODEL_SERVER": model_server.target}
    environment = [part for name, value in settings.items() for part in ("-e", f"RINGO_{name}={value}")]
    with container(*HARDENED, "--memory", "256m", *environment, SERVE) as gateway:
        wait_until(lambda: status_of(port, "/readyz") == 200, "the gateway is ready")
        assert status_of(port, "/generate?seed=42") == 200
        (described,) = json.loads(engine("inspect", gateway))
        program, python, *arguments = described["Config"]["Healthcheck"]["Test"]
        assert (program, python) == ("CMD", "python")
        engine("exec", gateway, python, *arguments)
        began = time.monotonic()
        engine("stop", "-t", "60", gateway)
        assert time.monotonic() - began < 20  # seconds; the longest request and its margin are 15
        assert engine("inspect", "--format", "{{.State.ExitCode}}", gateway) == "0"


def test_gateway_image_is_small_and_has_only_messages_of_tensorflow():
    assert int(engine("image", "inspect", "--format", "{{.Size}}", SERVE)) <= 250_000_000  # bytes
    script = "import pathlib; print(*{p.name for p in pathlib.Path('/opt').rglob('*tensorflow*/**/*.*')})"
    files = engine("run", "--rm", *HARDENED, "--entrypoint", "python", SERVE, "-c", script).split()
    assert files
    assert not [name for name in files if not name.endswith(("_pb2.py", "_pb2_grpc.py"))]


@pytest.fixture
def volume(tmp_path):
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:3]:  # pytest's own are closed to others
        folder.chmod(folder.stat().st_mode | 0o001)
    return tmp_path


@pytest.mark.parametrize("present", ["", "7"])
def test_bundled_model_is_copied_when_the_volume_has_no_version(volume, present):
    if present:
        (volume / "apple" / present).mkdir(parents=True)
    engine("run", "--rm", *HARDENED, "--network", "none", "-v", f"{volume}:/volume", MODEL)
    assert [path.name for path in (volume / "apple").iterdir()] == [present or BUNDLED.name]
    if not present:
        files = [path.relative_to(BUNDLED) for path in BUNDLED.rglob("*") if path.is_file()]
        copy = volume / "apple" / BUNDLED.name
        assert all((copy / file).read_bytes() == (BUNDLED / file).read_bytes() for file in files)


def test_training_fits_and_exports_under_all_restrictions(volume, photos):
    for name in ("runs", "models"):
        (volume / name).mkdir()
        (volume / name).chmod(0o777)
    photos.chmod(0o755)
    folders = {photos: "/photos:ro", volume / "runs": "/runs", volume / "models": "/models"}
    mounts = [part for source, target in folders.items() for part in ("-v", f"{source}:{target}")]
    run = ("run", "--rm", *HARDENED, "--network", "none", "--tmpfs", "/tmp", *mounts, TRAIN)
    engine(*run, "fit", "--photos", "/photos", "--out", "/runs/fruit", "--size", 32, "--steps", 20, "--batch-size", 8)
    engine(*run, "export", "/runs/fruit", "--to", "/models/fruit")
    assert (volume / "models" / "fruit" / "1" / "saved_model.pb").exists()
