"""The gateway as it runs: gunicorn in a process of its own, asked over HTTP."""

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.ports import listen
from tests.conftest import LIMIT_S, ROOT, command, ended_afterwards, wait_until


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def problem(self) -> dict[str, object]:
        assert self.headers["Content-Type"] == "application/problem+json"
        members = json.loads(self.body)
        assert members["status"] == self.status
        return members


@dataclass(frozen=True)
class Gateway:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, method: str = "GET") -> Reply:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def worker(self) -> Path:
        """Return the one worker's folder in /proc."""
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return Path("/proc", pid)


def free_port() -> int:
    with listen("127.0.0.1", 0, variable="", value="") as taken:
        return taken.getsockname()[1]


def environment(**settings: object) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RINGO_")}
    return {**others, **{f"RINGO_{name.upper()}": str(value) for name, value in settings.items()}}


@contextmanager
def gateway_for(target: str, folder: Path, **settings: object) -> Iterator[Gateway]:
    """Run the gateway for the model server at `target` until the `with` block ends."""
    port = free_port()
    log = folder / "gateway.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("serving", "gateway"),
            env=environment(port=port, model_server=target, **settings),
            stderr=stderr,
            cwd=ROOT,
        )
    with ended_afterwards(process):
        wait_until(lambda: process.poll() is not None or "Listening at" in log.read_text(), "gateway")
        assert process.poll() is None, log.read_text()
        yield Gateway(port, process, log)
