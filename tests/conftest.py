"""Fixtures and helpers of several test files."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from serving.run import ALLOCATOR

# The product's own environment, set before TensorFlow or grpc is imported.
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1", "TF_NUM_INTRAOP_THREADS": "1", **ALLOCATOR}
os.environ["GRPC_VERBOSITY"] = "NONE"
for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "KERAS_BACKEND"):
    os.environ.pop(name, None)

ROOT = Path(__file__).parents[1]
BUNDLED = max((ROOT / "models" / "apple").glob("[0-9]*"), key=lambda version: int(version.name))
VERSION = 3  # of the fake model: neither the first version nor a default
LIMIT_S = 120.0  # of one wait, on a busy machine
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write every file")
UNPRIVILEGED = () if os.geteuid() else ("setpriv", "--inh-caps=-all", "--bounding-set=-all")  # a command's wrapper


def wait_until(condition: Callable[[], Any], subject: str, limit_s: float = LIMIT_S) -> Any:
    """Return `condition()` once it is true; fail after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{subject}: not within {limit_s} s"
        time.sleep(0.01)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files from `training` back to `deploy`: the slowest ones begin, so both processes end together."""
    items.sort(key=lambda item: item.path, reverse=True)  # stable: tests of a file keep their order


@contextmanager
def ended_afterwards(process: subprocess.Popen) -> Iterator[None]:
    """End `process` by SIGTERM after the `with` block, within LIMIT_S."""
    with process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextmanager
def started(
    words: list[object], log: Path, is_ready: Callable[[], object], **options: object
) -> Iterator[subprocess.Popen]:
    """Run the command `words` in a `with` block, once `is_ready()`; its stderr is the file `log`."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(words, **{"cwd": ROOT, "stderr": stderr} | options)
    with ended_afterwards(process):
        wait_until(lambda: process.poll() is not None or is_ready(), " ".join(map(str, words)))
        assert process.poll() is None, log.read_text()
        yield process


@contextmanager
def full_pipe(mode: str) -> Iterator[IO]:
    """Open a full pipe for writing; its content stays unread."""
    readable, writable = os.pipe()
    os.write(writable, bytes(fcntl.fcntl(writable, fcntl.F_GETPIPE_SZ)))
    with os.fdopen(readable), os.fdopen(writable, mode) as pipe:
        yield pipe


def draw_photo(seed: int, size: int = 40) -> Image.Image:
    """Return a round fruit on white; noise makes every file different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    inside = (x**2 + y**2 < rng.uniform(0.1, 0.2))[..., None]
    colour = np.array([rng.integers(120, 255), rng.integers(0, 200), rng.integers(0, 80)])
    pixels = np.where(inside, colour + rng.normal(0, 8, (size, size, 3)), 255)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of 56 photos."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(56):
        draw_photo(seed).save(folder / f"{seed:02d}.png")
    return folder


@pytest.fixture(scope="session")
def small_run(photos, tmp_path_factory) -> Path:
    """A run folder at 32 px, four batches old."""
    from training.__main__ import main

    run = tmp_path_factory.mktemp("run") / "small"
    flags = "--image-size 32 --discriminator plain --batch-size 8 --steps 4 --log-every 1 --grid-every 2"
    flags += " --no-keep-best --no-jit-compile"
    assert main(["fit", "--photos", str(photos), "--out", str(run), *flags.split()]) == 0
    return run


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A copy of the small run, which a test may change."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def small_model(small_run, tmp_path_factory) -> Path:
    """A model folder with the small run's export as version 1."""
    from training.export.command import export
    from training.export.model_card import Fault

    models = tmp_path_factory.mktemp("models") / "fruit"
    faults = [Fault(7, "torn at the left")]
    export(small_run, models, licence="CC0-1.0", attribution="drawn by the tests", faults=faults)
    return models


def run_fake_model_server():
    """A fake model server with version 3 of a model."""
    from tests.fake_model_server import FakeModelServer

    with FakeModelServer(version=VERSION) as server:
        yield server


model_server = pytest.fixture(run_fake_model_server, scope="module")
server = pytest.fixture(run_fake_model_server)  # of one test, which may change its replies


@pytest.fixture
def start_gateway(tmp_path):
    """A function like gateway_for; its gateways end after the test."""
    from tests.gateway_process import gateway_for

    with ExitStack() as stack:
        yield lambda target, **options: stack.enter_context(gateway_for(target, tmp_path, **options))


def run_server(request, model_server, tmp_path_factory):
    """The server of the fixture's name, for `model_server`, with the SETTINGS of the test file, if any."""
    from tests.batch_process import batch_for
    from tests.gateway_process import gateway_for

    name, settings = request.fixturename, getattr(request.module, "SETTINGS", {})
    run_named = {"gateway": gateway_for, "batch": batch_for}[name]
    with run_named(model_server.target, tmp_path_factory.mktemp(name), **settings) as server:
        yield server


gateway = pytest.fixture(run_server, scope="module")
batch = pytest.fixture(run_server, scope="module")


@pytest.fixture
def small_disk(request, tmp_path) -> Iterator[Path]:
    """A file system of the size of the parameter; without root, skip the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, timeout=LIMIT_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for photos."""
    made = tmp_path / "photos"
    made.mkdir()
    return made


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]
