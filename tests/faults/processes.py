"""Model servers as processes that tests kill, stop and start again."""

import socket
import subprocess
from pathlib import Path
from typing import Self

from tests.conftest import BUNDLED, LIMIT_S, ROOT, command, wait_until
from tests.gateway_process import free_port

BUNDLED_MODEL = BUNDLED.parent


class ModelServer:
    """The embedded model server on `models`, or a fake one; a `with` block starts and ends it."""

    def __init__(self, models: Path | None = None) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        if models is None:
            program = ("tests.fake_model_server",)
        else:
            program = ("serving", "model-server", "--model_base_path", models, "--file_system_poll_wait_seconds", 0.2)
        self._command = command(*program, "--port", self.port, "--model_name", "apple")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

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
