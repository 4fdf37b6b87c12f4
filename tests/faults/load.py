"""Clients that ask as long as a test needs them, and note what became of every request."""

import hashlib
import http.client
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PAUSE_S = 0.01  # after a connection that was refused or broke off: no client comes back faster
CLIENT_TIMEOUT_S = 30.0  # three times the longest that the gateway waits by default: beyond it something hangs


@dataclass(frozen=True)
class Outcome:
    """What became of one request; `status` is None where no whole answer came, and `error` says why."""

    url: str
    begun_s: float  # by time.monotonic
    took_s: float
    status: int | None
    kind: str | None = None  # the Content-Type
    address: str | None = None  # the Content-Location, which pins version, seed and options
    digest: str | None = None  # SHA-256 of the body
    etag: str | None = None
    retry_after: str | None = None
    error: str | None = None

    @property
    def ended_s(self) -> float:
        return self.begun_s + self.took_s


@dataclass
class Load:
    """The outcomes so far; clients add to it while the `with` block of `clients_asking` or `offered` lasts."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == 200]

    @property
    def shed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == 503]

    @property
    def failed(self) -> list[Outcome]:
        """Whatever is not a picture: refused, broken off, or never answered."""
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def digests(self) -> dict[str | None, set[str | None]]:
        """Return the different bytes that came for each address: one each, where no byte is wrong."""
        found: dict[str | None, set[str | None]] = {}
        for outcome in self.answered:
            found.setdefault(outcome.address, set()).add(outcome.digest)
        return found


def percentile(outcomes: list[Outcome], percent: float) -> float:
    """Return how many seconds the fastest `percent` of `outcomes` took at most."""
    times = sorted(outcome.took_s for outcome in outcomes)
    return times[max(0, math.ceil(len(times) * percent / 100) - 1)]


class Client:
    """One connection that is kept open, and opened anew after a failure; the failed request is not repeated."""

    def __init__(self, port: int, *, timeout_s: float = CLIENT_TIMEOUT_S) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def ask(self, url: str) -> Outcome:
        begun_s = time.monotonic()
        try:
            self._connection.request("GET", url)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Outcome(url, begun_s, time.monotonic() - begun_s, None, error=repr(error))
        took_s = time.monotonic() - begun_s
        names = ("Content-Type", "Content-Location", "ETag", "Retry-After")
        kind, address, etag, retry_after = (response.headers[name] for name in names)
        digest = hashlib.sha256(body).hexdigest()
        return Outcome(url, begun_s, took_s, response.status, kind, address, digest, etag, retry_after)

    def close(self) -> None:
        self._connection.close()


def ask(port: int, url: str) -> Outcome:
    """Ask once, over a connection of its own."""
    client = Client(port)
    try:
        return client.ask(url)
    finally:
        client.close()


@contextmanager
def clients_asking(port: int, clients: int, url_of: Callable[[int], str], *, per_second: float = 0) -> Iterator[Load]:
    """Let `clients` ask for `url_of` 0, 1, 2 ... while the `with` block lasts.

    Each asks again as soon as it is answered; with `per_second`, at that rate together, however long answers take: what
    comes too late for its time, because all clients wait, is asked as soon as one is free.
    """
    load, ended, numbers = Load(), threading.Event(), itertools.count()
    begun_s = time.monotonic()

    def work() -> None:
        client = Client(port)
        while True:
            number = next(numbers)
            wait_s = begun_s + number / per_second - time.monotonic() if per_second else 0
            if ended.wait(max(wait_s, 0)) if wait_s > 0 else ended.is_set():
                break
            outcome = client.ask(url_of(number))
            load.outcomes.append(outcome)
            if outcome.status is None:
                ended.wait(PAUSE_S)
        client.close()

    threads = [threading.Thread(target=work, name=f"client-{number}") for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ended.set()
        for thread in threads:
            thread.join(2 * CLIENT_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"
