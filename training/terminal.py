"""Output that cannot fail, and commands for a shell."""

import io
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any


class _Output(io.FileIO):
    """A file descriptor that drops the bytes it cannot write."""

    def write(self, content: Any) -> int:
        """Write `content`, or drop it if the pipe or disk fails."""
        try:
            return super().write(content)
        except OSError:
            return len(content)


def progress_interval_s() -> float:
    """Return the seconds between two updates of a progress bar: the log of a container keeps every line."""
    return 1.0 if sys.stderr.isatty() else 60.0


def open_output() -> None:
    """Replace stdout and stderr, so that printing never ends a training.

    Settings of matplotlib and tqdm are replaced, because a wrong one raises an error; TQDM_DISABLE is kept.
    Characters that the terminal cannot show are escaped. Output that nothing can read is dropped.
    """
    for name in [name for name in os.environ if name.startswith("TQDM_") and name != "TQDM_DISABLE"]:
        del os.environ[name]
    os.environ["MPLBACKEND"] = "agg"
    # If a descriptor is closed, the next file gets its number, and the messages of libraries with it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        output = io.BufferedWriter(_Output(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(output, encoding, "backslashreplace", line_buffering=True))


def quote(word: object) -> str:
    """Return `word` quoted for bash, in characters that stdout can show."""
    text, encoding = str(word), sys.stdout.encoding or "utf-8"
    if text.isprintable() and text.encode(encoding, "replace").decode(encoding) == text:
        return shlex.quote(text)
    escaped = re.sub(rb"[^\w/.-]", lambda match: rb"\x%02x" % ord(match[0]), os.fsencode(text))
    return f"$'{escaped.decode()}'"


def python_command(*words: object) -> str:
    """Return the shell command that runs this Python with `words`."""
    python, here = Path(sys.executable), Path.cwd()
    return " ".join(map(quote, (python.relative_to(here) if python.is_relative_to(here) else python, *words)))
