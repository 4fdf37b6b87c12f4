"""Text on stdout and stderr, also if they are full or closed."""

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
    """Open closed standard streams on /dev/null; let no text block on stderr.

    Otherwise, a socket or a file gets the number of stderr, and all log lines.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115 (until the end of the process)
    sys.stderr = Stderr(sys.stderr or open(2, "w"))  # noqa: SIM115


def write_line(text: str) -> None:
    """Print `text` on stdout at once. Raises OutputError."""
    # Not by sys.stdout: at exit, Python would write its unwritten text again.
    data = f"{text}\n".encode(sys.stdout.encoding, "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}; send it elsewhere.") from error


def write_error(text: str, *, end: str = "\n", wait_s: float = BLOCKED_S) -> None:
    """Print `text` on stderr; wait at most BLOCKED_S if stderr is blocked.

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
    """Stderr, where text is dropped while it is blocked."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write `text`."""
        write_error(text, end="", wait_s=0)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream, such as its encoding."""
        return getattr(self._stream, name)
