"""The manifest: one row per image, sorted by seed at the end.

A row is appended after its file is complete, so a run can be resumed after `kill -9`.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from serving.paint.files import open_file
from serving.rendering.query import MAX_SEED


@dataclass(frozen=True)
class Row:
    """One image; `picture` is its permanent URL."""

    seed: int
    file: str  # relative to the folder; of a tar, the tar
    sha256: str
    model_version: int
    picture: str

    def is_sound(self) -> bool:
        """Return whether each field has its type and a valid value."""
        typed = all(type(getattr(self, one.name)) is one.type for one in fields(self))
        is_sha256 = bool(re.fullmatch("[0-9a-f]{64}", str(self.sha256)))
        return typed and is_sha256 and self.seed >= 0 and 0 <= self.model_version <= MAX_SEED


class Manifest:
    """A file of JSON lines that this process alone writes until `close`."""

    def __init__(self, path: Path) -> None:
        """Open `path`, and create it if need be. Raises OSError."""
        self._path = path
        self._file = open_file(path, append=True)
        self._file.seek(max(0, self._file.tell() - 1))
        if self._file.read() not in (b"", b"\n"):  # a killed process left half a line
            self._file.write(b"\n")

    def close(self) -> None:
        """Let other processes write the file."""
        self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Add `rows` and flush them. Raises OSError."""
        self._file.writelines(_line(row) for row in rows)
        self._file.flush()

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace the whole manifest by `rows`, atomically. Raises OSError."""
        aside = self._path.with_name(self._path.name + ".part")
        aside.unlink(missing_ok=True)  # also a FIFO or a link
        with aside.open("xb") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the undamaged rows of a manifest; none without a file."""
    with suppress(FileNotFoundError), io.TextIOWrapper(open_file(path), encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, TypeError, RecursionError):
                row = Row(**json.loads(line))
                if row.is_sound():
                    yield row


def _line(row: Row) -> bytes:
    return json.dumps(vars(row)).encode() + b"\n"
