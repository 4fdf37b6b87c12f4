"""Clients that send requests during a test, and record each outcome."""

import hashlib
import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.conftest import LIMIT_S, wait_until

CLIENT_TIMEOUT_S = 30.0  # three times the gateway's longest wait by default: beyond it something hangs


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request; `status` is None without a complete response."""

    started_s: float  # by time.monotonic
    took_s: float
    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""  # SHA-256 of the body
    error: str = ""

    @property
    def ended_s(self) -> float:
        return self.started_s + self.took_s


@dataclass
class Load:
    """The outcomes so far, to which the clients of `put_load` add."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == 200]

    @property
    def shed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == 503]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def wait_for_images(self, count: int, limit_s: float = LIMIT_S) -> None:
        """Return after `count` more images."""
        before = len(self.answered)
        wait_until(lambda: len(self.answered) >= before + count, "images", limit_s)

    def digests(self, header: str = "Content-Location") -> dict[str, set[str]]:
        """Return the digests of all images, by the value of `header`."""
        found: dict[str, set[str]] = {}
        for outcome in self.answered:
            found.setdefault(outcome.headers[header], set()).add(outcome.digest)
        return found


def percentile(outcomes: list[Outcome], percent: float) -> float:
    """Return the duration in seconds that `percent` of `outcomes` do not exceed."""
    return float(np.percentile([outcome.took_s for outcome in outcomes], percent, method="inverted_cdf"))


def send(connection: http.client.HTTPConnection, url: str) -> Outcome:
    """Send one request without a retry; close `connection` if it fails."""
    started_s = time.monotonic()
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Outcome(started_s, time.monotonic() - started_s, None, error=repr(error))
    took_s = time.monotonic() - started_s
    return Outcome(started_s, took_s, response.status, response.headers, hashlib.sha256(body).hexdigest())


@contextmanager
def put_load(port: int, clients: int, url_of: Callable[[int], str], *, per_second: float = 0) -> Iterator[Load]:
    """Request `url_of` 0, 1, 2 ... until the `with` block ends.

    Each client sends its next request after a response. With `per_second`, all clients together keep this rate; a late
    request is sent as soon as a client is free.
    """
    load, ended, numbers = Load(), threading.Event(), itertools.count()
    started_s = time.monotonic()

    def send_requests() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=CLIENT_TIMEOUT_S)) as connection:
            while not ended.is_set():
                number = next(numbers)
                if per_second and ended.wait(max(0, started_s + number / per_second - time.monotonic())):
                    break
                load.outcomes.append(send(connection, url_of(number)))
                if load.outcomes[-1].status is None:
                    ended.wait(0.01)  # seconds; the connection failed

    threads = [threading.Thread(target=send_requests, name=f"client-{number}") for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join(2 * CLIENT_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"
