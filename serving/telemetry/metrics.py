"""What both doors count, for Prometheus: right across gunicorn's workers.

Every worker writes its numbers to files in PROMETHEUS_MULTIPROC_DIR, and whichever is asked adds them up. The library
looks for that variable when it is imported, so gateway/server.py sets it first, and imports this module after the fork.

No label takes what a caller makes up: resources and outcomes are ours, and versions those that the model server has.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

# A kept picture takes 1 ms, a new one 35 ms on two idle cores, a stream of 64 about 0.3 s. What is promised lies on a
# bound, where a histogram is exact: what is shed, is within 0.1 s; without a model server 503 comes within 1 s; and
# 10 s are the longest wait for it. Whole streams take up to minutes.
REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
STAGE_BUCKETS_S = REQUEST_BUCKETS_S[:-1]  # each of them ends within the 10 s
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # as the exporter allows them

REQUESTS = Counter(
    "ringo_requests",
    "Requests that have been answered, by resource, outcome, and the version that was to answer.",
    ["resource", "outcome", "model_version"],
)
REQUEST_SECONDS = Histogram(
    "ringo_request_seconds",
    "Seconds until an answer was ready: of a stream, its last picture.",
    ["resource", "outcome"],
    buckets=REQUEST_BUCKETS_S,
)
REQUESTS_IN_FLIGHT = Gauge("ringo_requests_in_flight", "Requests that are being answered.", multiprocess_mode="livesum")
STAGE_SECONDS = Histogram(
    "ringo_stage_seconds",
    "Seconds of one stage: queue (for its turn), model (one Predict call), encode, or shared (waiting for "
    "the same picture, which another request makes).",
    ["stage"],
    buckets=STAGE_BUCKETS_S,
)
PREDICT_ROWS = Histogram(
    "ringo_predict_rows", "Rows that one Predict call asked for, by signature.", ["signature"], buckets=BATCH_SIZES
)
PICTURES = Counter(
    "ringo_pictures", "Pictures that were asked for, by where they come from: cache or model.", ["source"]
)
MODEL_SERVER_AWAY = Gauge(
    "ringo_model_server_away", "1 while nothing is asked of the model server, else 0.", multiprocess_mode="livemax"
)
LOG_LINES_DROPPED = Counter("ringo_log_lines_dropped", "Log lines lost because stderr was blocked or closed.")
GOLDEN_DIFFERING = Gauge(
    "ringo_golden_pictures_differing",
    "How many of the golden pictures this replica paints otherwise than the machine of the export; 0 is the promise.",
    ["model_version"],
    multiprocess_mode="livemax",
)


def build_metrics_app() -> Callable[[Any, Any], Iterable[bytes]]:
    """Return the WSGI application that answers any path with the numbers of all workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # one process, as in tests of the application alone
        return make_wsgi_app()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return make_wsgi_app(registry)
