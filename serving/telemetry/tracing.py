"""W3C trace context in and out, and spans for an OpenTelemetry collector.

Without the SDK, opentelemetry-api (0.2 MB, 25 ms to import) passes the trace context on and records nothing.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from random import getrandbits

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

TRACER = trace.get_tracer("ringo")
PROPAGATOR = TraceContextTextMapPropagator()

log = logging.getLogger(__name__)
_exporting = False  # set once, before this process serves requests


def export_traces(service: str) -> None:
    """Send spans of `service` to the endpoint of OpenTelemetry's variables.

    Call it after the fork. The variables may be a whole cluster's: a missing SDK or an invalid value is only a warning.
    """
    global _exporting
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        os.environ.setdefault("OTEL_SERVICE_NAME", service)
        provider = TracerProvider(resource=Resource.create({"service.namespace": "ringo"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ModuleNotFoundError:
        log.warning("%s is set, but requirements/telemetry.txt is not installed; install it to send spans.", endpoint)
        return
    except Exception as error:  # of any kind, for a value such as 10s instead of 10
        log.warning("No spans are sent: an OTEL_ variable is invalid (%s); correct it.", error)
        return
    trace.set_tracer_provider(provider)
    _exporting = True


def server_span(name: str, carrier: Mapping[str, str], *, recorded: bool) -> Span:
    """Return the span of a request with headers or metadata `carrier`.

    Its trace is that of a valid `traceparent`, else a new one. It records nothing without an SDK or `recorded`.
    """
    parent = PROPAGATOR.extract(carrier) if "traceparent" in carrier else Context()
    if recorded and _exporting:
        span = TRACER.start_span(name, parent, kind=SpanKind.SERVER)
    else:
        span = trace.get_current_span(parent)
    if span.get_span_context().is_valid:
        return span
    not_sampled = TraceFlags(TraceFlags.DEFAULT)
    return NonRecordingSpan(SpanContext(getrandbits(128), getrandbits(64), is_remote=False, trace_flags=not_sampled))


def child_span(name: str, attributes: Mapping[str, str | int]) -> AbstractContextManager[object]:
    """Return a context manager for a child span, if spans are exported."""
    return TRACER.start_as_current_span(name, attributes=attributes) if _exporting else nullcontext()


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return the current trace as gRPC metadata."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return tuple(carrier.items())
