"""Prometheus metrics of gateway and batch server, summed over workers.

Several workers count in files (worker_files.py), and the scraped worker sums them up: import this after the fork.

No label holds text of a client: resources and outcomes are fixed, and versions are loaded ones.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from werkzeug import Response

from serving import __version__

# A cached image takes 1 ms, a new one 35 ms on two idle cores, a stream of 64 about 0.3 s, whole streams minutes.
# Guaranteed times are bounds: shed requests 0.1 s, 503 without a model server 1 s, the longest wait for it 10 s.
REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # as the exporter allows them

BUILD_INFO = Gauge("ringo_build_info", "Always 1; its label is the release.", ["version"], multiprocess_mode="livemax")
BUILD_INFO.labels(__version__).set(1)
REQUESTS = Counter(
    "ringo_requests",
    "Finished requests by resource, outcome and model version.",
    ["resource", "outcome", "model_version"],
)
REQUEST_SECONDS = Histogram(
    "ringo_request_seconds",
    "Seconds until the response was ready; of a stream, until its last image.",
    ["resource", "outcome"],
    buckets=REQUEST_BUCKETS_S,
)
REQUESTS_IN_FLIGHT = Gauge("ringo_requests_in_flight", "Requests in progress.", multiprocess_mode="livesum")
STAGE_SECONDS = Histogram(
    "ringo_stage_seconds",
    "Seconds of one stage: queue (waiting in a queue), model (one Predict call), encode, or shared (waiting for "
    "the same image of another request).",
    ["stage"],
    buckets=REQUEST_BUCKETS_S[:-1],  # by default, every stage ends within 10 s
)
PREDICT_ROWS = Histogram(
    "ringo_predict_rows", "Rows of one Predict call, by signature.", ["signature"], buckets=BATCH_SIZES
)
PICTURES = Counter("ringo_pictures", "Requested images by source: cache or model.", ["source"])
MODEL_SERVER_AWAY = Gauge(
    "ringo_model_server_away", "1 while the model server does not answer, else 0.", multiprocess_mode="livemax"
)
LOG_LINES_DROPPED = Counter("ringo_log_lines_dropped", "Log lines lost because stderr was blocked or closed.")
GOLDEN_DIFFERING = Gauge(
    "ringo_golden_pictures_differing",
    "Golden images of this replica with other bytes than on the exporter's machine; 0 if verified.",
    ["model_version"],
    multiprocess_mode="livemax",
)


def build_metrics_app() -> Callable[[Any, Any], Iterable[bytes]]:
    """Return the WSGI application that serves the metrics of all workers."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    app = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        get = environ | {"HTTP_ACCEPT": "text/plain"}  # prometheus_client raises for a version that is no number
        get["REQUEST_METHOD"] = environ["REQUEST_METHOD"].replace("HEAD", "GET")
        return Response.from_app(app, get, buffered=True)(environ, start_response)  # HEAD gets no body

    return answer
