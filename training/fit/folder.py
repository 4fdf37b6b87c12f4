"""The folder of a run: checks, lock and renaming."""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from training.config import read_config
from training.errors import ConfigError, TrainingError
from training.records import read_batches_done, read_curves

NEEDED_FILES = ("config.json", "photos.json", "checkpoint.npz")  # to resume
RESULTS = ("checkpoint.npz", "best.npz", "history.csv", "kid.csv", "grids")  # a new start would overwrite them
OTHER_RECORDS = ("compute.json", "started_from.json", "grown_from.json")  # a new start would continue them
PARTIAL_FILES = f"*.{'[0-9a-f]' * 8}.part"  # see open_atomically


def check_no_runs_inside(run: Path) -> None:
    """Raise ConfigError if `run` is no run, but holds other runs."""
    if not (run / "config.json").exists() and (other := next(run.glob("*/config.json"), None)):
        raise ConfigError(f"--out {run} holds other runs, such as {other.parent}; set it to a folder of its own.")


def check_complete(run: Path) -> None:
    """Raise TrainingError if a file to resume from is missing or damaged."""
    results = [name for name in RESULTS if (run / name).exists()]
    missing = [name for name in NEEDED_FILES if not (run / name).exists()]
    if not missing and (done := read_batches_done(run / "checkpoint.npz")):
        missing = [name for name in ("history.csv", "compute.json") if not (run / name).exists()]
        read_curves(run / "history.csv")
        measured, best = read_curves(run / "kid.csv").get("step", ()), read_batches_done(run / "best.npz")
        if len(measured) and not best:
            missing.append("best.npz")
        elif best > done:
            missing.append(f"checkpoint.npz of batch {best} or later")
        # A kill may have interrupted the measurement of batch `done`, or a run without KID followed it.
        elif best not in (0, done, *measured) and read_config(run / "config.json").keep_best:
            missing.append(f"row of batch {best} in kid.csv")
    if results and missing:
        raise TrainingError(
            f"{run} has {results[0]} but no {' and no '.join(missing)}; restore it from a backup, "
            "or start over with --new, which keeps the old files."
        )


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Create and lock the folder `run` during a `with` block. Raises TrainingError if it is locked already."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"Another process trains in {run}; wait until it ends, or choose a new --out."
            ) from None
        # Of a process that was killed; photos/ may be the user's.
        for pattern in (PARTIAL_FILES, f"grids/{PARTIAL_FILES}", f"photos/.photos-{PARTIAL_FILES}"):
            for partial in run.glob(pattern):
                if partial.is_file():
                    partial.unlink()
        yield


def check_no_input_inside(run: Path, inputs: Iterable[Path]) -> None:
    """Raise ConfigError if `set_aside` would move one of the folders `inputs`."""
    inside = [path for path in inputs if path.resolve().is_relative_to(run.resolve())]
    if inside and _holds_run(run):
        raise ConfigError(f"--new would rename {run} with {inside[0]} in it; choose a new --out.")


def set_aside(run: Path) -> None:
    """Rename the folder `run` if it holds a run. Raises TrainingError."""
    if not _holds_run(run):
        return
    with lock_run(run):
        try:
            old = next(path for n in count(1) if not (path := run.with_name(f"{run.name}-old-{n}")).exists())
            run.rename(old)
        except OSError as error:  # such as a mount point
            raise TrainingError(f"{run} cannot be renamed ({error.strerror}); choose a new --out.") from error
    print(f"Renamed {run} to {old}.")


def _holds_run(run: Path) -> bool:
    return any((run / name).exists() for name in (*NEEDED_FILES, *RESULTS, *OTHER_RECORDS))
