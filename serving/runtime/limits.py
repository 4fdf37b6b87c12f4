"""How many may be inside at a time: whoever comes beyond is told so at once, instead of waiting in a line."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Overloaded, Stopping


class ConcurrencyLimit:
    """Lets at most `limit` calls in at a time, and none any more once it is shut. Threads may share it."""

    def __init__(self, limit: int, calls: str) -> None:
        self._limit = limit
        self._calls = calls
        self._changed = threading.Condition()  # guards what follows
        self._in_use = 0
        self._closed = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Be inside for the length of the `with` block; raise Overloaded or Stopping instead of waiting."""
        with self._changed:
            if self._closed:
                raise Stopping("This server is being stopped, and begins nothing new.")
            if self._in_use == self._limit:
                raise Overloaded(f"This server has {self._limit} {self._calls} under way, and takes no more for now.")
            self._in_use += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= 1
                self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Let nobody in any more, and wait until nobody is inside, at most for `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._in_use, timeout_s)
