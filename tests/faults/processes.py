"""Model servers and gateways as processes of their own, to be killed, stopped and replaced while others ask them."""

import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import LIMIT_S, ROOT, SHIPPED, command, wait_until
from tests.gateway_process import free_port


class ModelServer:
    """A model server on one port, whose process comes and goes."""

    def __init__(self, words: Sequence[object]) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self._words = [str(self.port) if word == "PORT" else word for word in words]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a process, and return once it listens."""
        self._process = subprocess.Popen(command(*self._words), cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), "a model server that listens")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def folder(self) -> Path:
        """Return the process's folder in /proc."""
        return Path("/proc", str(self._process.pid))

    def kill(self) -> None:
        """End the process by SIGKILL; without one, do nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT_S)
            self._process = None


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def model_server(*words: object) -> Iterator[ModelServer]:
    """Run `python -m` with `words`, PORT standing for its port; by default a fake that needs no TensorFlow."""
    server = ModelServer(words or ("tests.fake_model_server", "--port", "PORT", "--model_name", "apple"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


def embedded(base_path: Path = SHIPPED.parent) -> tuple[object, ...]:
    """Return the words that run the embedded model server on the versions in `base_path`."""
    return (
        "serving",
        "model-server",
        "--port",
        "PORT",
        "--model_base_path",
        base_path,
        "--file_system_poll_wait_seconds",
        "0.2",
    )


def resident_kb(process: Path) -> int:
    """Return how much memory the process with this folder in /proc has."""
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def open_files(process: Path) -> int:
    return sum(1 for _ in (process / "fd").iterdir())
