"""Lines on stdout, and text that is safe for a terminal."""

import os
import sys


class OutputError(Exception):
    """Stdout can't be written; the text is one sentence."""


def write_line(text: str) -> None:
    """Print `text` on stdout at once. Raises OutputError."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would write it again at its end
        raise OutputError(f"stdout cannot be written: {error.strerror}; send it elsewhere.") from error


def printable(text: str) -> str:
    """Return `text` with unprintable characters escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
