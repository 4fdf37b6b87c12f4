"""One thing at a time, once: callers who want the same thing while it is being made wait for it and share it."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Joins concurrent calls for one key into one. Threads may share it; nothing is kept once a call is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[K, Future[V]] = {}

    def do(self, key: K, make: Callable[[], V]) -> V:
        """Return what `make` returns, or what the call for `key` that is under way does; raise what either raises.

        Waiting has the limit that `make` has.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                mine = self._flights[key] = Future[V]()
        if flight is not None:
            return flight.result()
        try:
            made = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(made)
            return made
        finally:
            with self._lock:
                del self._flights[key]
