"""Rounds in which all sides take turns, and ratios with their spread."""

import datetime
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("tensorflow", "keras", "grpcio", "numpy", "pillow", "flask", "gunicorn", "fastapi", "uvicorn", "bentoml"),
    *("litserve", "onnxruntime", "openvino", "tf2onnx", "torch"),
)
K = TypeVar("K")
T = TypeVar("T")
HEARTBEAT_S = 0.5  # children first: gunicorn kills workers without a recent heartbeat


def take_turns(rounds: int, sides: Mapping[K, Callable[[], T]]) -> dict[K, list[T]]:
    """Return the results of each of `sides`, one a round.

    A busy moment of the machine affects all sides of a round. Every other round runs backwards, so that no side always
    follows the same one.
    """
    measured: dict[K, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(list(sides)):
            measured[name].append(sides[name]())
    return measured


def stop(pids: Sequence[int]) -> None:
    """Stop the processes `pids`, parents first; they cannot end before `resume`.

    LitServe without requests uses 11 % of a core.
    """
    _send(signal.SIGSTOP, pids)


def resume(pids: Sequence[int]) -> None:
    """Resume the processes `pids`."""
    _send(signal.SIGCONT, pids)


@contextmanager
def resumed(pids: Sequence[int]) -> Iterator[None]:
    """Resume the processes `pids`, the first one last, for the `with` block."""
    resume(pids[1:])
    if pids[1:]:
        time.sleep(HEARTBEAT_S)
    resume(pids[:1])
    try:
        yield
    finally:
        stop(pids)


def _send(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended since
            os.kill(pid, number)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return median and quartiles of `values`, to so many significant digits."""
    low, median, high = (float(f"{value:.{digits}g}") for value in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high}


def ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return the spread of values / others, round by round."""
    return spread([a / b for a, b in zip(values, others, strict=True)], digits=3)


def machine() -> dict[str, Any]:
    """Return the processors, their widest vectors, memory and versions."""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "vectors": vectors,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": versions,
    }


def commit() -> str:
    """Return the commit that is checked out, or nothing outside of git."""
    command = ["git", "-C", str(RESULTS.parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        return ""


def write(part: str, result: Mapping[str, Any], *, quick: bool = False) -> None:
    """Write `result`, machine, date and commit to results/`part`.json, unless `quick`."""
    if quick:
        return
    origin = {"part": part, "date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine()}
    whole = {**result, **origin}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{part}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def read(part: str) -> dict[str, Any]:
    """Return the last written result of a part, or nothing."""
    file = RESULTS / f"{part}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def row(*cells: object, width: int = 12) -> None:
    """Print `cells` as one row of a table."""
    first, *others = (str(cell) for cell in cells)
    print(f"{first:<22}" + "".join(f"{cell:>{width}}" for cell in others), flush=True)
