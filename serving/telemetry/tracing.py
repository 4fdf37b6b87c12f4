"""W3C trace context in and out, and spans if the OpenTelemetry SDK is installed and has an endpoint.

opentelemetry-api alone, which every image has (0.2 MB, 25 ms to import), passes on what came in and records nothing.
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
EXPORTER = "OTEL_TRACES_EXPORTER"

TRACER = trace.get_tracer("ringo")
PROPAGATOR = TraceContextTextMapPropagator()

log = logging.getLogger(__name__)
_exporting = False  # set once, before this process serves requests


def export_traces(service: str) -> bool:
    """Send spans of this process as `service` to where OpenTelemetry's own variables say; return whether it does.

    Call it after the fork. These variables are often set for a whole cluster, so an unusable one is only a warning.
    """
    global _exporting
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    exporter = os.environ.get(EXPORTER) or ("otlp" if named else "none")
    if exporter == "none":
        return False
    if exporter != "otlp":
        log.warning("%s is %r; spans are sent by otlp alone, so none are.", EXPORTER, exporter)
        return False
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        log.warning("%s is set, but requirements/telemetry.txt is not installed: no span is sent.", named or EXPORTER)
        return False
    os.environ.setdefault("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({"service.namespace": "ringo"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _exporting = True
    return True


def server_span(name: str, carrier: Mapping[str, str], *, recorded: bool) -> Span:
    """Return the span of a request that came with the headers, or metadata, `carrier`, with a valid trace id.

    The trace is the client's, if it sent a valid `traceparent`, else a new one. Without an SDK, or if not `recorded`,
    the span records nothing.
    """
    parent = PROPAGATOR.extract(carrier) if "traceparent" in carrier else Context()
    if recorded and _exporting:
        span = TRACER.start_span(name, parent, kind=SpanKind.SERVER)
    else:
        span = trace.get_current_span(parent)
    if span.get_span_context().is_valid:
        return span
    return NonRecordingSpan(
        SpanContext(
            trace_id=getrandbits(128),
            span_id=getrandbits(64),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.DEFAULT),  # not sampled
        )
    )


def child_span(name: str, attributes: Mapping[str, str | int]) -> AbstractContextManager[object]:
    """Return a context manager that makes a `with` block a child span, if spans are exported."""
    return TRACER.start_as_current_span(name, attributes=attributes) if _exporting else nullcontext()


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata of the current trace: traceparent, and tracestate if present."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return tuple(carrier.items())
