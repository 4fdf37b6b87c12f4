"""The small files of a run, read without Keras."""

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError, TrainingError

COLUMNS = {
    "history.csv": ("step", "g_loss", "d_loss", "d_real", "d_generated"),
    "kid.csv": ("step", "kid_x1000", "std", "minutes"),
}
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, BadZipFile)  # damaged files of NumPy
Record = TypeVar("Record")


@dataclass(frozen=True)
class ComputeRecord:
    """The content of compute.json: duration of a run, and the machine that ended it."""

    training_s: float
    backend: str
    machine: str
    processors: int


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` at the end; allows several writers. Raises OSError."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = path  # a user does not know the temporary name
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically; text as UTF-8. Raises OSError."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` to `path` as indented JSON, atomically. Raises OSError."""
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def read_record(path: Path, record_type: type[Record], *, remedy: str = "restore it from a backup") -> Record:
    """Return the JSON object in `path` as a dataclass. Raises TrainingError, with `remedy`, if it does not fit."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
        record = msgspec.json.decode(text, type=record_type)
        json.loads(text, object_pairs_hook=_refuse_repetition, parse_int=str)  # msgspec takes the last value of a name
        return record
    except (OSError, UnicodeDecodeError, msgspec.DecodeError, RecursionError, ConfigError) as error:
        raise TrainingError(f"{path} cannot be read ({str(error).rstrip('.'):.200}); {remedy}.") from error


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> None:
    name, number = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if number > 1:
        raise ConfigError(f"{name!r} occurs {number} times")


def read_batches_done(checkpoint: Path) -> int:
    """Return the batches done at `checkpoint`, 0 without a file. Raises TrainingError if it is damaged."""
    if not checkpoint.exists():
        return 0
    try:
        with checkpoint.open("rb") as stream, np.lib.npyio.NpzFile(stream) as file:
            return int(file["step"])
    except UNREADABLE as error:
        raise TrainingError(f"{checkpoint} cannot be read ({error}); restore it from a backup.") from error


def read_curves(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of `path`, a file of COLUMNS, equally long.

    Without a file or a complete row, it returns an empty dictionary. The last row is dropped if it is incomplete,
    because a full disk truncates it. Raises TrainingError if the first line or another row is damaged.
    """
    if not path.exists():
        return {}
    columns = COLUMNS[path.name]
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names, *rows = [line.split(",") for line in lines if line] or [[]]
    if tuple(names) != columns:
        raise TrainingError(f"Line 1 of {path} is not {','.join(columns)}; restore the file from a backup.")
    numbers = [*map(_parse_numbers, rows)]
    if numbers and len(numbers[-1]) != len(columns):
        numbers.pop()
    for line, row in enumerate(numbers, 2):
        if len(row) != len(columns) or not row[0].is_integer() or not np.isfinite(row).all():
            raise TrainingError(f"{path} is damaged in line {line}; restore it from a backup.")
    return dict(zip(columns, np.array(numbers).T, strict=True)) if numbers else {}


def _parse_numbers(row: list[str]) -> list[float]:
    try:
        return [float(text) for text in row]
    except ValueError:
        return []
