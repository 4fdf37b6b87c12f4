"""The metrics of a server, as Prometheus reads them."""

import http.client
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.conftest import LIMIT_S


def scrape(port: int) -> list[Sample]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(port: int, name: str, **labels: str) -> float:
    """Return the sum of samples of `name` that have at least `labels`."""
    return sum(one.value for one in scrape(port) if one.name == name and labels.items() <= one.labels.items())
