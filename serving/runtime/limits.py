"""Limits of concurrent calls and of open files."""

import math
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.errors import Overloaded, Stopping
from serving.settings import SettingsError

SWEEP_INTERVAL_S = 0.02


class ConcurrencyLimit:
    """Admits calls of up to `limit` slots, without abandoned ones; thread-safe."""

    def __init__(self, limit: int, calls: str) -> None:
        self._limit = limit
        self._calls = calls
        self._changed = threading.Condition()  # guards the fields below
        self._holders: dict[object, tuple[Callable[[], bool], int]] = {}  # whether each is abandoned, and its slots
        self._swept_s = -math.inf
        self._closed = False

    @contextmanager
    def slot(self, is_abandoned: Callable[[], bool] = lambda: False, *, slots: int = 1) -> Iterator[None]:
        """Hold `slots` for the `with` block, or raise Overloaded or Stopping.

        A call of more slots than the limit runs alone.
        """
        holder = object()
        with self._changed:
            if self._closed:
                raise Stopping("This server is stopping; send the request to another one.")
            if not self._has_room(slots):
                self._sweep()
            if not self._has_room(slots):
                raise Overloaded(f"This server has {len(self._holders)} {self._calls} under way; try again later.")
            self._holders[holder] = is_abandoned, slots
        try:
            yield
        finally:
            with self._changed:
                self._holders.pop(holder, None)
                self._changed.notify_all()

    def _has_room(self, slots: int) -> bool:
        held = sum(slots for _, slots in self._holders.values())
        return not held or held + slots <= self._limit

    def _sweep(self) -> None:
        """Free the slots of abandoned calls, at most once in SWEEP_INTERVAL_S."""
        if time.monotonic() - self._swept_s >= SWEEP_INTERVAL_S:
            self._holders = {holder: entry for holder, entry in self._holders.items() if not entry[0]()}
            self._swept_s = time.monotonic()

    def close(self, timeout_s: float) -> None:
        """Admit no more calls; wait up to `timeout_s` for the others."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._holders, timeout_s)


def raise_open_files(needed: int, wanted: int) -> int:
    """Raise the limit of open files, at most to `wanted`; return it.

    Raises SettingsError for fewer than `needed`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most < needed:
        raise SettingsError("ulimit -n", str(most), f"a limit of at least {needed} open files")
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
