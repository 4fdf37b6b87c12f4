"""What the gateway counts, for Prometheus: right across gunicorn's workers.

Every worker writes its numbers to files in PROMETHEUS_MULTIPROC_DIR, and whichever is asked adds them up. The library
looks for that variable when it is imported, so http_server.py sets it first, and imports this module after the fork.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

RESPONSES = Counter("ringo_http_responses", "Responses, by resource and status.", ["resource", "status"])
CALLS = Counter(
    "ringo_grpc_calls", "Calls of the batch server that have ended, by method and status.", ["method", "status"]
)
PICTURES = Counter("ringo_pictures", "Answers with a picture, by where it came from.", ["source"])
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
