"""One thing at a time, once: callers who want the same thing while it is being made wait for it and share it."""

import math
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Generic, TypeVar

from serving.errors import ModelTimeout
from serving.telemetry.request_log import stage

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Joins concurrent calls for one key into one. Threads may share it; nothing is kept once a call is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[K, Future[V]] = {}

    def do(self, key: K, make: Callable[[], V], *, deadline_s: float = math.inf) -> V:
        """Return what `make` returns, or what the call for `key` that is under way does; raise what either raises.

        Who joins waits as long as that takes, and at most until `deadline_s` of time.monotonic: then ModelTimeout. The
        ModelTimeout of whose call it is, is his: who has time left begins anew.
        """
        entry: Future[V] = Future()
        while True:
            with self._lock:
                flight = self._flights.setdefault(key, entry)
            if flight is entry:
                break
            with stage("shared"):
                done = wait([flight], seconds_until(deadline_s)).done
            if not done:
                raise ModelTimeout("The caller's time was up before what others had asked for was made.")
            with suppress(ModelTimeout):
                return flight.result()
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
        try:
            made = make()
        except BaseException as error:
            entry.set_exception(error)
            raise
        else:
            entry.set_result(made)
            return made
        finally:
            with self._lock:
                if self._flights.get(key) is entry:
                    del self._flights[key]


def seconds_until(deadline_s: float) -> float | None:
    """Return how long `deadline_s` of time.monotonic is away, 0 if it is over; None for infinity, as waits have it."""
    return None if deadline_s == math.inf else max(0.0, deadline_s - time.monotonic())
