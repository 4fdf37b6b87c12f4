"""How lines are logged: as text for people, or as JSON for whatever collects them. Always to stderr, one line an event.

Python, gunicorn and TensorFlow write there, too: so the lines of a process stay in order.
"""

import json
import logging
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# Whatever could end a line, or move a terminal's cursor.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
GATHER_S = 0.05  # about 75 lines at full load, which take the interpreter 1 ms
MAX_GATHERED = 10_000  # 10 MB; so many only wait where nobody reads what we write

ENCODER = json.JSONEncoder(default=str)


class Event(ABC):
    """What is logged by its fields: its text is the same as a sentence would be."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Return what is to be told, by name."""

    @abstractmethod
    def ids(self) -> dict[str, str]:
        """Return by what the lines that belong to this event are found."""


# To which lines belong that are logged now, in this thread.
CURRENT: ContextVar[Event | None] = ContextVar("event", default=None)


def configure(log_format: str) -> "LineHandler":
    """Log INFO and worse in `log_format` (settings.LOG_FORMATS), here and in processes that are forked from now on."""
    handler = LineHandler(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    # A caller's trace context that is not valid is no news; the line would show it.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
    # What no line of ours tells need not be found out: the way of logging's documentation.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    return handler


class LineHandler(logging.Handler):
    """Writes lines to stderr: each at once, or, after `gather`, in bundles.

    Of 640 us of a core that a kept picture took, its line took 72: cold code, and a call of the system. In bundles it
    is 25.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._gathers = False
        self._records: list[logging.LogRecord] = []  # guarded by the handler's own lock
        self._writing = threading.Lock()  # held from taking records to having written them, so that they stay in order

    def gather(self) -> None:
        """Write every GATHER_S from now on, at once what is an ERROR, and at the end; call it after a fork.

        Who kills the process outright loses what was logged since.
        """
        self._gathers = True
        threading.Thread(target=self._flush_now_and_then, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take `record`; logging calls this."""
        record.ids = ids()  # of this thread
        self._records.append(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """Take `record`; write it here and now if it can't wait, or if too much waits already."""
        super().handle(record)
        if not self._gathers or record.levelno >= logging.ERROR or len(self._records) >= MAX_GATHERED:
            self.flush()
        return True

    def flush(self) -> None:
        """Write what has been taken."""
        with self._writing:
            self.acquire()
            records, self._records = self._records, []
            self.release()
            if records:
                try:
                    sys.stderr.write("".join(f"{self.format(record)}\n" for record in records))
                    sys.stderr.flush()
                except Exception:  # as logging's own handlers: a line that is lost is no reason to fail a request
                    self.handleError(records[-1])

    def _flush_now_and_then(self) -> None:
        while True:
            time.sleep(GATHER_S)
            self.flush()


class JsonFormatter(logging.Formatter):
    """One JSON object a line, ASCII: an event by its fields, anything else by its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        line: dict[str, Any] = {"time": time_of(record), "level": record.levelname}
        if isinstance(record.msg, Event):
            line |= record.msg.fields()
        else:
            line |= {"logger": record.name, "message": record.getMessage()} | ids_of(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return ENCODER.encode(line)


class TextFormatter(logging.Formatter):
    """Time, level and message; what may follow, a traceback, is indented, so that no line can pass for another."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, with those of its traceback."""
        message = record.getMessage()
        if not isinstance(record.msg, Event):
            message += "".join(f" {name}={value}" for name, value in ids_of(record).items())
        line = f"{time_of(record)} {record.levelname} {CONTROL.sub(_escaped, message)}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n  {CONTROL.sub(_escaped, part)}" for part in traceback.split("\n"))
        return line


def time_of(record: logging.LogRecord) -> str:
    """Return when it happened, in UTC, to the millisecond, by RFC 3339."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def ids() -> dict[str, str]:
    """Return the ids of the current event, none outside of any."""
    event = CURRENT.get()
    return {} if event is None else event.ids()


def ids_of(record: logging.LogRecord) -> dict[str, str]:
    """Return the ids that `ids` told when `record` was logged."""
    found: dict[str, str] = getattr(record, "ids", {})
    return found


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
