"""The gateway as a process of its own, with an HTTP client."""

import http.client
import io
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from serving.runtime.ports import listen
from serving.settings import SettingsError
from tests.conftest import LIMIT_S, ROOT, command, started, wait_until


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
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, method: str = "GET", *, port: int = 0, sock: Any = None, **headers: str) -> Reply:
        """Send one request, by default over a new socket; `If_None_Match="..."` is the header If-None-Match."""
        with closing(http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=LIMIT_S)) as connection:
            connection.sock = sock
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def pixels(self, path: str) -> np.ndarray:
        """Return the image at `path`, uint8[H, W, 3]."""
        reply = self.ask(path)
        assert reply.status == 200, reply.body
        with Image.open(io.BytesIO(reply.body)) as image:
            assert image.mode == "RGB"
            return np.asarray(image)

    def metric(self, name: str, **labels: str) -> float:
        return value(self.metrics_port, name, **labels)

    def rendered(self) -> float:
        """Return the number of images that were not in the cache."""
        return self.metric("ringo_pictures_total", source="model")

    def line_of(self, reply: Reply) -> dict[str, object]:
        """Return the log line of the request of `reply`; wait for it. RINGO_LOG_FORMAT is json."""

        def found() -> list[dict[str, object]]:
            own, lines = reply.headers["X-Request-ID"], map(json.loads, self.log.read_text().splitlines())
            return [line for line in lines if line.get("request_id") == own and "outcome" in line]

        (line,) = wait_until(found, "a line")
        return line

    def workers(self) -> list[Path]:
        return [Path("/proc", str(pid)) for pid in children_of(self.process.pid)]

    def worker(self) -> Path:
        (worker,) = self.workers()
        return worker


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_kb(process: Path) -> int:
    """Return the resident memory of the process with this folder in /proc."""
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def scrape(port: int) -> list[Sample]:
    """Return the metrics of a server, as Prometheus reads them."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT_S) as response:
        families = text_string_to_metric_families(response.read().decode())
    return [sample for family in families for sample in family.samples]


def value(port: int, name: str, **labels: str) -> float:
    """Return the sum of samples of `name` that have at least `labels`."""
    return sum(one.value for one in scrape(port) if one.name == name and labels.items() <= one.labels.items())


def status_of(port: int, path: str) -> int | None:
    """Return the status of a response to one request, None without a response."""
    with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status
    return None


@cache
def claim_ports() -> tuple[Iterator[int], socket.socket]:
    """Return the ports of this process, in turns, and the socket that marks their range as taken.

    With shared ports, another run of tests could take the port of a server that this one has killed. They lie below
    32768, where the system's ports for outgoing connections begin: a program could take a free port above at any time.
    """
    for first in range(20_000, 32_000, 500):
        mark = socket.socket()
        with suppress(OSError):
            mark.bind(("127.0.0.1", first))
            return cycle(range(first + 1, first + 500)), mark
        mark.close()
    raise OSError("the ports 20000, 20500, ... and 31500 are all taken; end other runs of the tests")


def free_port() -> int:
    """Return a port that no program listens on."""
    while True:
        with suppress(SettingsError), listen("127.0.0.1", next(claim_ports()[0]), variable="") as taken:
            return taken.getsockname()[1]


def environment(**settings: object) -> dict[str, str]:
    """Return the environment with only `settings` and a free metrics port.

    Without TF_ENABLE_ONEDNN_OPTS, which the product sets itself: not every processor has it by default.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith(("RINGO_", "TF_ENABLE"))}
    settings = {"metrics_port": free_port()} | settings
    return {**others, **{f"RINGO_{name.upper()}": str(value) for name, value in settings.items()}}


def run_serving(*words: object, wrapper: Sequence[str] = (), **settings: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m serving`, by the command `wrapper`, to its end."""
    whole, env = [*wrapper, *command("serving", *words)], environment(**settings)
    return subprocess.run(whole, env=env, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def tls(path: object) -> dict[str, object]:
    return {"tls_certificate": path, "tls_key": path}


def shell(script: str) -> tuple[str, ...]:
    """Return a command that runs `script` before the command behind it."""
    return ("sh", "-c", f'{script} && exec "$@"', "sh")


@contextmanager
def gateway_for(
    target: str,
    folder: Path,
    *,
    wrapper: Sequence[str] = (),
    unread: bool = False,
    probe: str | None = "/readyz",
    **settings: object,
) -> Iterator[Gateway]:
    """Run a gateway in a `with` block, once `probe` is 200; `wrapper` as for run_serving.

    If `unread`, its stderr is a pipe without a reader. Otherwise it is the file `log`. With TLS, `probe` is None.
    """
    port, metrics_port, log = free_port(), free_port(), folder / "gateway.log"

    def is_ready() -> bool:
        return status_of(port, probe) == 200 if probe else "Listening at" in log.read_text()

    env = environment(port=port, metrics_port=metrics_port, model_server=target, **settings)
    options = {"env": env, **({"stderr": subprocess.PIPE} if unread else {})}
    with started([*wrapper, *command("serving", "gateway")], log, is_ready, **options) as process:
        yield Gateway(port, metrics_port, process, log)
