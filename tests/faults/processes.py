"""Model servers as processes that tests kill, stop and start again."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import BUNDLED, LIMIT_S, ROOT, command, wait_until
from tests.gateway_process import free_port

BUNDLED_MODEL = BUNDLED.parent


class ModelServer:
    """A model server on one port, which can be restarted."""

    def __init__(self, models: Path | None) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        if models is None:
            program = ("tests.fake_model_server",)
        else:
            program = ("serving", "model-server", "--model_base_path", models, "--file_system_poll_wait_seconds", 0.2)
        self._command = command(*program, "--port", self.port, "--model_name", "apple")

    def start(self) -> None:
        """Start a process, and return once it listens."""
        self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), "a model server that listens")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def model_server(models: Path | None = None) -> Iterator[ModelServer]:
    """Run the embedded model server on `models`, or a fake one."""
    server = ModelServer(models)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def resident_kb(process: Path) -> int:
    """Return the resident memory of the process with this folder in /proc."""
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])
