"""Text on stdout and stderr, also if they are full or closed."""

import os
import sys
from typing import Any, TextIO


class OutputError(Exception):
    """Stdout can't be written; the text is one sentence."""


def write_line(text: str) -> None:
    """Print `text` on stdout at once. Raises OutputError."""
    try:
        print(text, flush=True)
    except OSError as error:
        _silence(sys.stdout)
        raise OutputError(f"stdout cannot be written: {error.strerror}; send it elsewhere.") from error


class Stderr:
    """Stderr for progress; errors of writing are ignored."""

    def write(self, text: str) -> None:
        """Write `text`."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            _silence(sys.stderr)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of sys.stderr, such as its encoding."""
        return getattr(sys.stderr, name)


def _silence(stream: TextIO) -> None:
    """Send `stream` to nowhere: Python writes unwritten text again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """Return `text` with unprintable characters escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
