"""Load on a server by wrk, which shares the cores with it."""

import itertools
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("load.lua")
GRACE_S = 30.0  # for wrk to end after its duration
TIMEOUT_S = 20  # for one response; a later one counts as failed

_fresh_seeds = itertools.count(1_000_000, 1_000_000)  # no two loads share a seed


class NoLoadGenerator(Exception):
    """wrk is not installed; the text is one sentence."""


class Failed(Exception):
    """A request failed; the text is one sentence."""


@dataclass(frozen=True)
class Request:
    """The request for a seed's image; SEED is replaced by the seed."""

    port: int
    path: str
    method: str = "GET"
    body: str = ""


@dataclass(frozen=True)
class Load:
    """The result of a load; percentiles of wrk are partly computed.

    After a response slower than twice the mean, wrk adds the latencies of requests that it would have delayed.
    """

    responses_a_second: float
    p50_ms: float | None  # None without percentiles
    p95_ms: float | None
    p99_ms: float | None
    bytes_a_response: float
    failed_share: float = 0.0  # 503 for the most part, of a server at its limit
    cpu_ms: dict[str, float] = field(default_factory=dict)  # of a response, by command; without wrk's


def require_wrk() -> str:
    """Return the path of wrk, or raise NoLoadGenerator."""
    path = shutil.which("wrk")
    if path is None:
        raise NoLoadGenerator("wrk is not on the PATH; run apt-get install wrk.")
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
    """Send requests for new seeds, or for the seed `repeat` only.

    Latencies are of all responses. Raises Failed without a response or, unless `may_fail`, if one is not 2xx or 3xx.
    """
    first, step = (next(_fresh_seeds), 1) if repeat is None else (repeat, 0)
    command = [
        *(require_wrk(), "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:g}s"),
        *("--timeout", f"{TIMEOUT_S}s", "--script", str(SCRIPT), f"http://127.0.0.1:{request.port}", "--"),
        *(request.method, request.path, request.body, str(first), str(step), etag),
    ]
    output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE_S, check=True).stdout
    result = json.loads(output.rpartition("RESULT ")[2])
    if not result["responses"] or (result["failed"] and not may_fail):
        raise Failed(f"{result['failed']} of {result['responses']} requests to {request.path} failed.")
    return Load(
        responses_a_second=(result["responses"] - result["failed"]) * 1e6 / result["us"],
        p50_ms=result["p50_us"] / 1e3,
        p95_ms=result["p95_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        bytes_a_response=result["bytes"] / result["responses"],
        failed_share=result["failed"] / result["responses"],
    )
