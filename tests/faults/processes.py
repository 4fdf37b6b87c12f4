"""Model servers and gateways as processes of their own, to be killed, stopped and replaced while others ask them."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import LIMIT_S, ROOT, SHIPPED, command, ended_afterwards, wait_until
from tests.gateway_process import Gateway, environment, free_port

ESTABLISHED = "01"  # in /proc/net/tcp

# Takes over the sockets that argv[1] numbers, as systemd hands them: from descriptor 3 on, to this very process.
HAND_OVER = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for place, fd in enumerate(fds, 3):
    os.dup2(fd, place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
os.execv(sys.executable, [sys.executable, "-m", "serving", "gateway"])
"""


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
    return ("serving", "model-server", "--port", "PORT", "--model-base-path", base_path, "--poll-interval-s", "0.2")


@contextmanager
def gateway_on(sockets: Sequence[socket.socket], target: str, folder: Path, **settings: object) -> Iterator[Gateway]:
    """Run a gateway on two sockets of ours, its own and that of the metrics, until the `with` block ends.

    It may be one of several, which come and go while the sockets stay open.
    """
    port, metrics_port = (taken.getsockname()[1] for taken in sockets)
    fds = [taken.fileno() for taken in sockets]
    log = folder / f"gateway-{len(list(folder.glob('gateway-*.log')))}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds))],
            env=environment(port=port, metrics_port=metrics_port, model_server=target, **settings),
            stderr=stderr,
            cwd=ROOT,
            pass_fds=fds,
        )
    with ended_afterwards(process):
        wait_until(lambda: process.poll() is not None or "Booting worker" in log.read_text(), "gateway")
        assert process.poll() is None, log.read_text()
        yield Gateway(port, metrics_port, process, log)


def resident_kb(process: Path) -> int:
    """Return how much memory the process with this folder in /proc has."""
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def connections(process: Path, port: int) -> int:
    """How many connections to `port` of IPv4 the process of that folder in /proc holds."""
    rows = [row.split() for row in (process / "net" / "tcp").read_text().splitlines()[1:]]
    there = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED}
    held = 0
    for file in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            held += str(file.readlink()) in there
    return held


def open_files(process: Path) -> int:
    return sum(1 for _ in (process / "fd").iterdir())
