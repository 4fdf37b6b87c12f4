"""What a folder of painted pictures holds: a row for each, appended as it comes, and in the seeds' order at the end.

A row is the promise that the bytes are there: it is written after the file has its name. So whatever ends a run, also
`kill -9`, the next one finds what is done; what was under way is made again.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self, TextIO

SHA256 = re.compile("[0-9a-f]{64}")


class InUseError(Exception):
    """Another process is at work on the manifest; the text is one sentence."""


@dataclass(frozen=True)
class Row:
    """One picture. `picture` is its address at the gateway: version, seed and options, all that its bytes depend on."""

    seed: int
    file: str  # relative to the folder; of a tar, the tar
    sha256: str
    model_version: int
    picture: str

    def is_sound(self) -> bool:
        """Return whether all of it is of its type, and `sha256` in hexadecimal."""
        typed = all(type(getattr(self, one.name)) is one.type for one in fields(self))
        return typed and SHA256.fullmatch(self.sha256) is not None


class Manifest:
    """A file of JSON lines, for one process and, in it, one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def rows(self) -> Iterator[Row]:
        """Yield the rows there are; a torn or spoilt one promises nothing, and is passed over."""
        try:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        row = Row(**json.loads(line))
                    except (ValueError, TypeError):
                        continue
                    if row.is_sound():
                        yield row
        except FileNotFoundError:
            return

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InUseError(f"Another process is at work on {self._path}.") from None
        if self._file.tell() and not self._ends_a_line():
            self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Add `rows`, at once readable by others. Raises OSError."""
        if self._file is None:
            raise ValueError("The manifest is not open.")
        self._file.writelines(_line(row) for row in rows)
        self._file.flush()

    def replace(self, rows: Iterable[Row]) -> None:
        """Let the manifest consist of `rows`, whole or not at all. Raises OSError."""
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
