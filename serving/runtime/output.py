"""Text on stdout and stderr, also if they are full or closed."""

import io
import os
import sys
import threading
from contextlib import suppress
from typing import Any

BLOCKED_S = 1.0
_stderr = threading.Lock()  # held until a text is written


class OutputError(Exception):
    """Stdout can't be written; the text is one sentence."""


def prepare_output() -> None:
    """Open closed standard streams on /dev/null; let stdout escape unencodable text.

    Else a socket or a file gets the number of stderr, and all log lines.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115 (until the end of the process)
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_line(text: str) -> None:
    """Print `text` on stdout at once. Raises OutputError."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python writes unwritten text again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"stdout cannot be written: {error.strerror}; send it elsewhere.") from error


def write_error(text: str, *, end: str = "\n", wait_s: float = BLOCKED_S) -> None:
    """Print `text` on stderr; wait at most BLOCKED_S for a blocked one.

    If an earlier text still blocks after `wait_s`, this one is dropped. Errors of writing are ignored.
    """
    data = f"{text}{end}".encode(sys.stderr.encoding, "backslashreplace")
    if _stderr.acquire(timeout=wait_s):
        thread = threading.Thread(target=_write_stderr, args=(data,), daemon=True)
        thread.start()
        thread.join(BLOCKED_S)


def _write_stderr(data: bytes) -> None:
    with suppress(OSError):
        os.write(2, data)  # without Python's lock
    _stderr.release()


class Stderr:
    """Stderr for progress, which is dropped while stderr is blocked."""

    def write(self, text: str) -> None:
        """Write `text`."""
        write_error(text, end="", wait_s=0)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of sys.stderr, such as its encoding."""
        return getattr(sys.stderr, name)
