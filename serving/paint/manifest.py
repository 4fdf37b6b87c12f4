"""The manifest: one row per image, sorted by seed at the end.

A row is appended after its file is complete, so a run can be resumed after `kill -9`.
"""

import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self, TextIO

from serving.paint.client import PaintError
from serving.paint.files import open_file
from serving.rendering.query import MAX_SEED

SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Row:
    """One image; `picture` is its permanent URL."""

    seed: int
    file: str  # relative to the folder; of a tar, the tar
    sha256: str
    model_version: int
    picture: str

    def is_sound(self) -> bool:
        """Return whether each field has its type, and fits."""
        typed = all(type(getattr(self, one.name)) is one.type for one in fields(self))
        return typed and bool(SHA256.fullmatch(self.sha256)) and self.seed >= 0 and 0 <= self.model_version <= MAX_SEED


class Manifest:
    """A file of JSON lines, for one thread of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def rows(self) -> Iterator[Row]:
        """Yield the rows, without damaged ones."""
        try:
            with io.TextIOWrapper(open_file(self._path), encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        row = Row(**json.loads(line))
                    except (ValueError, TypeError, RecursionError):
                        continue
                    if row.is_sound():
                        yield row
        except FileNotFoundError:
            return

    def __enter__(self) -> Self:
        if self._path.exists():
            open_file(self._path).close()
        self._file = self._path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise PaintError(f"Another process is at work on {self._path}.") from None
        if self._file.tell() and not self._ends_a_line():
            self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Add `rows` and flush them. Raises OSError."""
        if self._file is None:
            raise ValueError("The manifest is not open.")
        self._file.writelines(_line(row) for row in rows)
        self._file.flush()

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace the whole manifest by `rows`, atomically. Raises OSError."""
        aside = self._path.with_name(self._path.name + ".part")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)

    def _ends_a_line(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def _line(row: Row) -> str:
    return json.dumps(vars(row)) + "\n"
