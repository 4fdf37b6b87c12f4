"""Log lines on stderr, as text or JSON, from one thread.

A blocked stream, such as a full pipe, loses lines, but blocks no request and no exit.
"""

import atexit
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from serving.errors import printable

GATHER_S = 0.05  # about 75 lines at full load, written by one system call
MAX_QUEUED = 2_000  # about 3 MB, a second at full load; more wait only for a blocked stream
EXIT_S = 1.0  # how long the end of a process waits for a blocked stream

# Of the current request: values of ID_FIELDS.
ID_FIELDS = ("request_id", "trace_id")
WORDS = ("method", "path", "status", "outcome")  # of a request, in a text line without their names
LINE_IDS: ContextVar[Mapping[str, str]] = ContextVar("line_ids", default=MappingProxyType({}))

log = logging.getLogger(__name__)


def configure(log_format: str) -> None:
    """Log INFO and worse in `log_format`, also in processes forked later."""
    handler = LineHandler(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    # Its warnings would quote invalid trace contexts of clients.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
    # No line shows these; logging's documentation recommends this to save time.
    logging._srcfile = None
    logging.raiseExceptions = False  # it would print to sys.stderr, which may be blocked
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    os.register_at_fork(after_in_child=handler.listen)
    atexit.register(handler.drain)


class LineHandler(logging.Handler):
    """Queues records for a thread that writes them; drops some if full."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.listen()

    def listen(self) -> None:
        """Start a queue and a thread, which a fork does not copy."""
        self._records = queue.SimpleQueue[Any]()
        self._count_lock = threading.Lock()  # guards _dropped
        self._dropped = 0  # lines not yet reported
        threading.Thread(target=self._write_records, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue `record` with the LINE_IDS of this thread; logging calls this."""
        record.__dict__.update(LINE_IDS.get())
        if self._records.qsize() < MAX_QUEUED:
            self._records.put(record)
        else:
            self._count_dropped(1)

    def drain(self) -> None:
        """Wait until all queued lines are written, at most EXIT_S."""
        written = threading.Event()
        self._records.put(written)
        written.wait(EXIT_S)

    def _write_records(self) -> None:
        """Write queued records forever, those of GATHER_S together, and set queued events."""
        while True:
            batch = [self._records.get()]
            time.sleep(GATHER_S)
            with suppress(queue.Empty):
                while len(batch) < MAX_QUEUED:
                    batch.append(self._records.get_nowait())
            lines = [self._line_of(entry) for entry in batch if isinstance(entry, logging.LogRecord)]
            try:
                _write(lines)
                self._report_dropped()
            except OSError:  # the reader has closed the pipe
                self._count_dropped(len(lines))
            for written in batch:
                if isinstance(written, threading.Event):
                    written.set()

    def _line_of(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # the thread must go on
            return self.format(log.makeRecord(log.name, logging.ERROR, "", 0, "%s: %s", (record.msg, error), None))

    def _count_dropped(self, lines: int) -> None:
        with self._count_lock:
            self._dropped += lines
        # The embedded model server has no metrics, and gunicorn's parent must not import them before its forks.
        if "serving.telemetry.metrics" in sys.modules:
            from serving.telemetry.metrics import LOG_LINES_DROPPED

            LOG_LINES_DROPPED.inc(lines)

    def _report_dropped(self) -> None:
        with self._count_lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            text = "%d log lines were dropped, because stderr was blocked or closed; read it faster."
            _write([self._line_of(log.makeRecord(log.name, logging.WARNING, "", 0, text, (dropped,), None))])


def _write(lines: list[str]) -> None:
    """Write `lines` without sys.stderr, for whose lock Python waits at exit."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(2, data) :]


class JsonLines(JsonFormatter):
    """One JSON object per line, in ASCII; dict messages are merged."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d+00:00"

    def __init__(self) -> None:
        names = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"}
        super().__init__(["asctime", "levelname", "name", "message"], rename_fields=names, json_default=str)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of the line; python-json-logger calls this."""
        if not log_data["message"]:  # a dict was logged
            del log_data["message"], log_data["logger"]
        return log_data


class TextLines(logging.Formatter):
    """Time, level and message; lines of a traceback are indented."""

    converter = staticmethod(time.gmtime)
    default_time_format = JsonLines.default_time_format
    default_msec_format = JsonLines.default_msec_format

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, with those of its traceback."""
        if isinstance(record.msg, dict):  # of a request
            named = [f"{name}={value}" for name, value in record.msg.items() if name not in WORDS]
            message = " ".join([*(str(record.msg[name]) for name in WORDS), *named])
        else:
            named = [f" {name}={getattr(record, name)}" for name in ID_FIELDS if hasattr(record, name)]
            message = record.getMessage() + "".join(named)
        line = f"{self.formatTime(record)} {record.levelname} {printable(message)}"
        if record.exc_info:
            line += "".join(f"\n  {printable(part)}" for part in self.formatException(record.exc_info).split("\n"))
        return line
