"""Limits of concurrent calls and of open files."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Overloaded, Stopping
from serving.settings import SettingsError


class ConcurrencyLimit:
    """Admits at most `limit` calls at a time, none when closed; thread-safe."""

    def __init__(self, limit: int, calls: str) -> None:
        self._limit = limit
        self._calls = calls
        self._changed = threading.Condition()  # guards the fields below
        self._in_use = 0
        self._closed = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for the `with` block, or raise Overloaded or Stopping."""
        with self._changed:
            if self._closed:
                raise Stopping("This server is stopping; send the request to another one.")
            if self._in_use == self._limit:
                raise Overloaded(f"This server has {self._limit} {self._calls} under way; try again later.")
            self._in_use += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= 1
                self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Admit no more calls; wait up to `timeout_s` for the others."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._in_use, timeout_s)


def raise_open_files(needed: int, wanted: int) -> int:
    """Return how many files may be open, at most `wanted`, after raising the soft limit as far as allowed.

    Raises SettingsError for fewer than `needed`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most < needed:
        raise SettingsError("ulimit -n", str(most), f"a limit of at least {needed} open files")
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
