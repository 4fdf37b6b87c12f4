"""SingleFlight: concurrent calls for one key share one result."""

import math
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TypeVar

from serving.errors import ClientGone, ModelTimeout
from serving.telemetry.request_log import ABANDONED_CHECK_S, check_client, stage

T = TypeVar("T")


class SingleFlight:
    """Joins concurrent calls for one key into one; keeps no results; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Future[bytes]] = {}

    def do(self, key: Hashable, make: Callable[[], bytes], *, deadline_s: float = math.inf) -> bytes:
        """Return the result of `make`, or of the call in progress.

        A follower waits until `deadline_s` (time.monotonic), then raises ModelTimeout, or ClientGone before. A leader
        does not share these two errors with its followers: one of them starts again.
        """
        entry: Future[bytes] = Future()
        while True:
            with self._lock:
                flight = self._flights.setdefault(key, entry)
            if flight is entry:
                break
            with stage("shared"):
                wait_for(flight, deadline_s)
            with suppress(ModelTimeout, ClientGone):
                return flight.result()
        try:
            try:
                result = make()
            finally:  # before the followers wake up: one of them may start again
                with self._lock:
                    del self._flights[key]
        except BaseException as error:
            entry.set_exception(error)
            raise
        entry.set_result(result)
        return result


def wait_for(run: Future[T], deadline_s: float) -> None:
    """Return when `run` is done. Raises ModelTimeout at `deadline_s`, or ClientGone."""
    while not run.done():
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise ModelTimeout("The deadline passed before the image was rendered; try again later.")
        check_client()
        wait([run], min(ABANDONED_CHECK_S, left_s))
