"""Load on a server by wrk, in a process of its own; on two cores the servers share them with it."""

import itertools
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")
GRACE_S = 30.0  # for wrk to end, after its time is over
TIMEOUT_S = 20  # for one answer; a later one counts as failed

_fresh_seeds = itertools.count(1_000_000, 1_000_000)  # no load asks for a seed of another


class NoLoadGenerator(Exception):
    """wrk is not installed; the text is one sentence."""


class Failed(Exception):
    """A server did not answer everything; the text is one sentence."""


@dataclass(frozen=True)
class Request:
    """How a server is asked for the picture of a seed, for which SEED stands in path and body."""

    port: int
    path: str
    method: str = "GET"
    body: str = ""


@dataclass(frozen=True)
class Load:
    """What came of a load: latencies as wrk corrects them, for callers who would have waited in line."""

    answers_a_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    bytes_an_answer: float
    failed_share: float = 0.0  # 503 for the most part: of a server that takes no more


def require_wrk() -> str:
    """Return the path of wrk, or raise NoLoadGenerator."""
    path = shutil.which("wrk")
    if path is None:
        raise NoLoadGenerator("wrk is not on the PATH: apt-get install wrk.")
    return path


def put_load(
    request: Request,
    *,
    clients: int,
    seconds: float,
    repeat: int | None = None,
    etag: str = "",
    may_fail: bool = False,
) -> Load:
    """Ask for `seconds`, with so many `clients` at a time: for new seeds, or for the seed `repeat` only.

    Raises Failed if nothing came back or, unless it `may_fail`, anything but 2xx and 3xx; latencies are of all answers.
    """
    first, step = (next(_fresh_seeds), 1) if repeat is None else (repeat, 0)
    command = [
        *(require_wrk(), "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:g}s"),
        *("--timeout", f"{TIMEOUT_S}s", "--script", str(SCRIPT), f"http://127.0.0.1:{request.port}", "--"),
        *(request.method, request.path, request.body, str(first), str(step), etag),
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE_S, check=True).stdout
    told = json.loads(next(line.removeprefix("RESULT ") for line in said.splitlines() if line.startswith("RESULT ")))
    if not told["answers"] or (told["failed"] and not may_fail):
        raise Failed(f"{told['failed']} of {told['answers']} requests to {request.path} failed.")
    return Load(
        answers_a_second=(told["answers"] - told["failed"]) * 1e6 / told["us"],
        p50_ms=told["p50_us"] / 1e3,
        p95_ms=told["p95_us"] / 1e3,
        p99_ms=told["p99_us"] / 1e3,
        bytes_an_answer=told["bytes"] / told["answers"],
        failed_share=told["failed"] / told["answers"],
    )
