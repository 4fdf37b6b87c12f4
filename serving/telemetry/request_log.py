"""One request as an operator sees it: its ids, how long each stage took, and what came of it.

When it ends it is counted, its span is closed, and one line is logged. That line has nothing that a caller makes up but
an id of a few harmless characters and, where no resource of ours was asked for, the path.
"""

import contextvars
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from random import getrandbits
from typing import Any, Literal, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode, format_trace_id
from prometheus_client import Counter, Histogram

from serving.telemetry.logs import LINE_IDS
from serving.telemetry.metrics import REQUEST_SECONDS, REQUESTS, REQUESTS_IN_FLIGHT, STAGE_SECONDS
from serving.telemetry.tracing import child_span, server_span

Stage = Literal["queue", "model", "encode", "shared"]

# Ids are no secrets. os.urandom would let go of the interpreter's lock at each, which other threads then take.
REQUEST_ID = "x-request-id"
REQUEST_ID_ALLOWED = re.compile("[A-Za-z0-9._-]{1,64}")
MAX_SHOWN_CHARACTERS = 200  # of a path or a cause: the longest address of ours, with 64 seeds, is longer but for a few

# Beside the kinds of serving/errors.py and of HTTP's own refusals.
ANSWERED, NOT_MODIFIED, CLIENT_GONE, FAILED = "answered", "not_modified", "client_gone", "failed"
# Not the caller's fault. What is overloaded is so by design.
TROUBLE = frozenset({FAILED, "model_mismatch", "model_unavailable", "model_timeout", "overloaded", "stopping"})

log = logging.getLogger(__name__)
_adding = threading.Lock()  # guards the stages of all, for as long as an addition takes
T = TypeVar("T")


@dataclass(eq=False)
class RequestRecord:
    """What is to be told of one request; whoever answers it fills it in."""

    method: str
    request_id: str
    span: Span
    trace_id: str
    resource: str = "unknown"
    path: str = "-"  # canonical, without what a caller may have put into a query
    status: int | str = "-"  # of the protocol
    outcome: str = FAILED  # until it comes to another end
    model_version: int | None = None  # only one that the model server has: it becomes a label
    source: str | None = None  # of a picture: cache or model
    pictures: int | None = None  # of a stream
    size_bytes: int = 0
    cause: str | None = None  # what the model server had to say, for us alone
    quiet: bool = False  # nobody wants to read of it when it went well
    seconds: float = 0.0
    # Seconds of each; sums, of a stream that may be in several at a time.
    stages: dict[str, float] = field(default_factory=dict)

    def record_failure(self, error: Exception, outcome: str) -> None:
        """Let `error`, with its notes, be what came of it."""
        self.outcome = outcome
        self.cause = "; ".join(getattr(error, "__notes__", ())) or None

    def add(self, stage: Stage, seconds: float) -> None:
        """Add to what the request has spent in `stage`."""
        with _adding:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def fields(self) -> dict[str, Any]:
        """Return what a log line tells, in its order; only what there is."""
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "method": self.method,
            "path": self.path if len(self.path) <= MAX_SHOWN_CHARACTERS else shown(self.path),
            "status": self.status,
            "outcome": self.outcome,
            "bytes": self.size_bytes,
            "seconds": round(self.seconds, 4),
        }
        if self.model_version is not None:
            fields["model_version"] = self.model_version
        if self.source is not None:
            fields["source"] = self.source
        if self.pictures is not None:
            fields["pictures"] = self.pictures
        for stage, seconds in list(self.stages.items()):  # one that outlasts the request may be added now
            fields[f"{stage}_seconds"] = round(seconds, 4)
        if self.cause is not None:
            fields["cause"] = shown(self.cause)
        return fields

    def _end(self) -> None:
        requests, seconds = _series(self.resource, self.outcome, self.model_version)
        requests.inc()
        seconds.observe(self.seconds)
        trouble = self.outcome in TROUBLE
        if self.span.is_recording():
            self.span.update_name(f"{self.method} {self.resource}")
            self.span.set_attributes({f"ringo.{name}": value for name, value in self.fields().items()})
            if trouble:
                self.span.set_status(StatusCode.ERROR, self.outcome)
        self.span.end()
        if not (self.quiet and self.outcome == ANSWERED):
            log.log(logging.WARNING if trouble else logging.INFO, RequestLine(self.fields()))


RECORD: ContextVar[RequestRecord | None] = ContextVar("record", default=None)


class RequestLine(dict[str, Any]):
    """The fields of a request as a log message."""

    def __str__(self) -> str:
        """Return the main fields as words, the others by name."""
        words = ("method", "path", "status", "outcome")
        named = (f"{name}={value}" for name, value in self.items() if name not in words)
        return " ".join([*(str(self[name]) for name in words), *named])


@lru_cache(maxsize=1024)  # looking for labels takes as long as counting
def _series(resource: str, outcome: str, model_version: int | None) -> tuple[Counter, Histogram]:
    version = "" if model_version is None else str(model_version)
    return REQUESTS.labels(resource, outcome, version), REQUEST_SECONDS.labels(resource, outcome)


@contextmanager
def record_request(method: str, carrier: Mapping[str, str], *, recorded: bool = True) -> Iterator[RequestRecord]:
    """Yield the observation of a request that lasts as long as the `with` block, with the headers `carrier`.

    Their names are in lower case. With `recorded` False the request gets no span.
    """
    began_s = time.monotonic()
    asked = carrier.get(REQUEST_ID, "")
    request_id = asked if REQUEST_ID_ALLOWED.fullmatch(asked) else f"{getrandbits(64):016x}"
    span = server_span(method, carrier, recorded=recorded)
    record = RequestRecord(method, request_id, span, format_trace_id(span.get_span_context().trace_id))
    token = otel_context.attach(trace.set_span_in_context(span, otel_context.Context()))
    RECORD.set(record)
    LINE_IDS.set({"request_id": record.request_id, "trace_id": record.trace_id})
    REQUESTS_IN_FLIGHT.inc()
    try:
        yield record
    finally:
        REQUESTS_IN_FLIGHT.dec()
        record.seconds = time.monotonic() - began_s
        record._end()
        RECORD.set(None)
        LINE_IDS.set({})
        otel_context.detach(token)


def find_record() -> RequestRecord | None:
    """Return the observation of the request that is being answered, None outside of any."""
    return RECORD.get()


def current_record() -> RequestRecord:
    """Return the same; raise LookupError outside of any."""
    record = find_record()
    if record is None:
        raise LookupError("Requests come through record_request().")
    return record


@contextmanager
def stage(name: Stage, **attributes: str | int) -> Iterator[None]:
    """Measure the `with` block as a stage, of the current request if there is one, with `attributes` for its span."""
    began_s = time.monotonic()
    try:
        with child_span(name, attributes):
            yield
    finally:
        record_stage(name, time.monotonic() - began_s)


def record_stage(name: Stage, seconds: float) -> None:
    """Count `seconds` as a stage that has ended, of the current request if there is one."""
    STAGE_SECONDS.labels(name).observe(seconds)
    record = find_record()
    if record is not None:
        record.add(name, seconds)


def with_current_context(call: Callable[..., T]) -> Callable[..., T]:
    """Return `call`, to run in another thread as a part of the current request."""
    context = contextvars.copy_context()
    return lambda *arguments: context.run(call, *arguments)


def shown(text: str) -> str:
    """Return `text`, cut to MAX_SHOWN_CHARACTERS."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"
