"""Clients that send requests for as long as a test needs them, and record each outcome."""

import hashlib
import http.client
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

PAUSE_S = 0.01  # of a client after a connection that was refused or broke off
CLIENT_TIMEOUT_S = 30.0  # three times the gateway's longest wait by default: beyond it something hangs


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request; `status` is None if the response was not complete, and `error` is the reason."""

    begun_s: float  # by time.monotonic
    took_s: float
    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""  # SHA-256 of the body
    error: str = ""

    @property
    def ended_s(self) -> float:
        return self.begun_s + self.took_s

    @property
    def permanent_url(self) -> str:
        return self.headers["Content-Location"]


@dataclass
class Load:
    """The outcomes so far; clients add to them until the `with` block of `clients_asking` ends."""

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

    def digests(self, header: str = "Content-Location") -> dict[str, set[str]]:
        """Return the digests of all images, by the value of `header`: one each unless a byte is wrong."""
        found: dict[str, set[str]] = {}
        for outcome in self.answered:
            found.setdefault(outcome.headers[header], set()).add(outcome.digest)
        return found


def percentile(outcomes: list[Outcome], percent: float) -> float:
    """Return the longest duration of the fastest `percent` of `outcomes`, in seconds."""
    times = sorted(outcome.took_s for outcome in outcomes)
    return times[max(0, math.ceil(len(times) * percent / 100) - 1)]


def pause(seconds: float) -> None:
    """Wait for a duration where no condition can be polled: the length of a load."""
    threading.Event().wait(seconds)


def new_connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=CLIENT_TIMEOUT_S)


def send(connection: http.client.HTTPConnection, url: str) -> Outcome:
    """Send one request, without a retry; `connection` stays open unless the request fails."""
    begun_s = time.monotonic()
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Outcome(begun_s, time.monotonic() - begun_s, None, error=repr(error))
    took_s = time.monotonic() - begun_s
    return Outcome(begun_s, took_s, response.status, response.headers, hashlib.sha256(body).hexdigest())


def ask(port: int, url: str) -> Outcome:
    """Send one request over a connection of its own."""
    with closing(new_connection(port)) as connection:
        return send(connection, url)


@contextmanager
def clients_asking(port: int, clients: int, url_of: Callable[[int], str], *, per_second: float = 0) -> Iterator[Load]:
    """Let `clients` request `url_of` 0, 1, 2 ... until the `with` block ends.

    Each sends its next request after a response. With `per_second`, all together keep this rate; requests that are late
    because all clients wait are sent as soon as one is free.
    """
    load, ended, numbers = Load(), threading.Event(), itertools.count()
    begun_s = time.monotonic()

    def send_requests() -> None:
        with closing(new_connection(port)) as connection:
            while not ended.is_set():
                number = next(numbers)
                if per_second and ended.wait(max(0, begun_s + number / per_second - time.monotonic())):
                    break
                load.outcomes.append(send(connection, url_of(number)))
                if load.outcomes[-1].status is None:
                    ended.wait(PAUSE_S)

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
