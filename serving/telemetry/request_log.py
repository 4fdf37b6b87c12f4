"""The record of a request: its ids, stages and outcome.

When the request ends, it is counted, its span is closed, and one line is logged. Text of the client in that line is a
valid request id and, for unknown resources, the path only.
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

from serving.errors import ClientGone, shortened
from serving.telemetry.logs import LINE_IDS
from serving.telemetry.metrics import REQUEST_SECONDS, REQUESTS, REQUESTS_IN_FLIGHT, STAGE_SECONDS
from serving.telemetry.tracing import child_span, server_span

Stage = Literal["queue", "model", "encode", "shared"]

# Ids are not secret. os.urandom would release the interpreter's lock for each id.
REQUEST_ID = "x-request-id"
MAX_SHOWN_CHARACTERS = 200  # of a path or a cause in a log line
ABANDONED_CHECK_S = 0.25  # how often a waiting request checks its connection

# Outcomes beside the errors of serving/errors.py and HTTP's own.
ANSWERED, NOT_MODIFIED, CLIENT_GONE, FAILED = "answered", "not_modified", "client_gone", "failed"
# Outcomes that are not the client's fault.
TROUBLE = frozenset({FAILED, "model_mismatch", "model_unavailable", "model_timeout", "overloaded", "stopping"})

log = logging.getLogger(__name__)
_adding = threading.Lock()  # guards the stages of all records
T = TypeVar("T")


@dataclass(eq=False)
class RequestRecord:
    """The facts logged, counted and traced of one request."""

    method: str
    request_id: str
    span: Span
    trace_id: str
    began_s: float = field(default_factory=time.monotonic)
    resource: str = "unknown"
    path: str = "-"  # the permanent URL, or the path without the query
    status: int | str = "-"  # of the protocol
    outcome: str = FAILED  # until the handler sets another
    model_version: int | None = None  # only a loaded one: it becomes a metric label
    source: str | None = None  # of an image: cache or model
    pictures: int | None = None  # of a stream
    size_bytes: int = 0
    cause: str | None = None  # the model server's message; logged, not sent to the client
    is_probe: bool = False  # not logged if the outcome is ANSWERED
    is_abandoned: Callable[[], bool] = lambda: False  # whether the client has closed the connection
    seconds: float = 0.0
    # Seconds of each stage; of a stream, sums over its batches.
    stages: dict[str, float] = field(default_factory=dict)

    def record_failure(self, error: Exception, outcome: str) -> None:
        """Record `outcome`, and the notes of `error` as its cause."""
        self.outcome = outcome
        self.cause = "; ".join(getattr(error, "__notes__", ())) or None

    def add(self, stage: Stage, seconds: float) -> None:
        """Add `seconds` to the time of `stage`."""
        with _adding:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def fields(self) -> dict[str, Any]:
        """Return the fields of the log line, without empty ones."""
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "method": self.method,
            "path": shortened(self.path, MAX_SHOWN_CHARACTERS),
            "status": self.status,
            "outcome": self.outcome,
            "bytes": self.size_bytes,
            "seconds": round(self.seconds, 4),
        }
        optional = {"model_version": self.model_version, "source": self.source, "pictures": self.pictures}
        fields |= {name: value for name, value in optional.items() if value is not None}
        for stage, seconds in list(self.stages.items()):  # a thread that outlasts the request may add one now
            fields[f"{stage}_seconds"] = round(seconds, 4)
        if self.cause is not None:
            fields["cause"] = shortened(self.cause, MAX_SHOWN_CHARACTERS)
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
        if not (self.is_probe and self.outcome == ANSWERED):
            log.log(logging.WARNING if trouble else logging.INFO, self.fields())


RECORD: ContextVar[RequestRecord | None] = ContextVar("record", default=None)  # of the current request


@lru_cache(maxsize=1024)  # the lookup of labels takes as long as counting
def _series(resource: str, outcome: str, model_version: int | None) -> tuple[Counter, Histogram]:
    version = "" if model_version is None else str(model_version)
    return REQUESTS.labels(resource, outcome, version), REQUEST_SECONDS.labels(resource, outcome)


@contextmanager
def record_request(method: str, carrier: Mapping[str, str], *, is_probe: bool = False) -> Iterator[RequestRecord]:
    """Yield the record of a request, which ends with the `with` block.

    `carrier` has headers by their lower-case names. A probe gets no span.
    """
    request_id = carrier.get(REQUEST_ID, "")
    if not re.fullmatch("[A-Za-z0-9._-]{1,64}", request_id):
        request_id = f"{getrandbits(64):016x}"
    span = server_span(method, carrier, recorded=not is_probe)
    trace_id = format_trace_id(span.get_span_context().trace_id)
    record = RequestRecord(method, request_id, span, trace_id, is_probe=is_probe)
    token = otel_context.attach(trace.set_span_in_context(span, otel_context.Context()))
    RECORD.set(record)
    LINE_IDS.set({"request_id": record.request_id, "trace_id": record.trace_id})
    REQUESTS_IN_FLIGHT.inc()
    try:
        yield record
    finally:
        REQUESTS_IN_FLIGHT.dec()
        record.seconds = time.monotonic() - record.began_s
        record._end()
        RECORD.set(None)
        LINE_IDS.set({})
        otel_context.detach(token)


def is_abandoned() -> bool:
    """Return whether the current client, if any, has closed its connection."""
    record = RECORD.get()
    return record is not None and record.is_abandoned()


def check_client() -> None:
    """Raise ClientGone if the current client, if any, has closed its connection."""
    if is_abandoned():
        raise ClientGone("The client closed the connection before its image was rendered.")


def current_record() -> RequestRecord:
    """Return the record of the current request; raise LookupError outside of one."""
    record = RECORD.get()
    if record is None:
        raise LookupError("Requests come through record_request().")
    return record


@contextmanager
def stage(name: Stage, **attributes: str | int) -> Iterator[None]:
    """Record the `with` block as a stage, and as a span."""
    began_s = time.monotonic()
    try:
        with child_span(name, attributes):
            yield
    finally:
        record_stage(name, time.monotonic() - began_s)


def record_stage(name: Stage, seconds: float) -> None:
    """Record `seconds` of a stage in metrics and current request."""
    STAGE_SECONDS.labels(name).observe(seconds)
    record = RECORD.get()
    if record is not None:
        record.add(name, seconds)


def with_current_context(call: Callable[..., T]) -> Callable[..., T]:
    """Return `call` for another thread, as part of the current request."""
    context = contextvars.copy_context()
    return lambda *arguments: context.run(call, *arguments)
