"""PredictBatcher: concurrent requests for one image share a Predict call.

A call for 8 images takes about 6 times as long as a call for 1. A client often sends its next request right after a
response, so the next batch waits briefly for as many requests as the last batch had. It does not wait if several calls
may run at once and none runs: the model server would be idle. A lone request never waits.

Batches run in the threads of the requests. The thread that runs a batch also encodes the images of all its requests:
eight threads that wake at once would compete for the interpreter's lock.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from serving.errors import ClientGone, ModelTimeout
from serving.model_client.client import MAX_ROWS
from serving.telemetry.request_log import ABANDONED_CHECK_S, RECORD, is_abandoned, record_stage

ENOUGH_ROWS = 8  # start without waiting for more: from 8 rows on, a row costs no less
WAIT_RATIO = 0.7  # of the duration of the last call: how long its clients get to send the next request
MAX_WAIT_S = 0.02  # 8 images of the bundled model take as long; limits the wait after a call that hung

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]  # [H, W, 3], sRGB
# Takes the key of a batch, its seeds, and a deadline (time.monotonic);
# returns one image per seed, in order.
Generate = Callable[[K, Sequence[int], float], Sequence[Pixels]]


@dataclass(eq=False)
class PendingRequest(Generic[K]):
    """One request for one image."""

    key: K  # requests of one key may share a call
    seed: int
    on_pixels: Callable[[Pixels], Any]
    deadline_s: float
    queued_s: float = field(default_factory=time.monotonic)
    started_s: float = math.inf  # when the call began
    ended_s: float = math.inf
    future: Future[Any] = field(default_factory=Future)
    wake_up: SimpleQueue[None] = field(default_factory=SimpleQueue)  # one item for each change


class PredictBatcher(Generic[K]):
    """Runs up to `max_calls` Predict calls of up to MAX_ROWS rows; thread-safe."""

    def __init__(self, generate: Generate[K], *, max_calls: int) -> None:
        self._generate = generate
        self._lock = threading.Lock()  # guards the fields below
        self._max_calls = self._free_calls = max_calls
        self._waiting: deque[PendingRequest[K]] = deque()  # the thread of the first one wakes when a batch is due
        self._expected = 1  # a batch starts at once with this many requests,
        self._wait_until_s = 0.0  # and from then on with any number

    def predict(self, key: K, seed: int, on_pixels: Callable[[Pixels], T], *, deadline_s: float = math.inf) -> T:
        """Return the result of `on_pixels` for `seed`, by `deadline_s` (time.monotonic).

        `on_pixels` may run in another request's thread. Raises the errors of `on_pixels` and `generate`, ModelTimeout
        after the deadline, and ClientGone. The thread that runs the batch waits for the latest of its deadlines.
        """
        entry = PendingRequest(key, seed, on_pixels, deadline_s)
        with self._lock:
            self._waiting.append(entry)
        batch, until_s = self._take_batch(entry)
        if not batch:
            batch = self._wait(entry, until_s)
        if batch:
            self._run_batch(batch)
        result: T = entry.future.result()
        return result

    def _wait(self, entry: PendingRequest[K], until_s: float) -> list[PendingRequest[K]]:
        """Wait for the result of `entry`, or for a batch to run."""
        batch: list[PendingRequest[K]] = []
        try:
            while not batch and not entry.future.done():
                with suppress(Empty):
                    entry.wake_up.get(timeout=min(max(0.0, until_s - time.monotonic()), ABANDONED_CHECK_S))
                batch, until_s = self._take_batch(entry)
            return batch
        finally:
            now_s = time.monotonic()
            record_stage("queue", min(entry.started_s, now_s) - entry.queued_s)
            record = RECORD.get()
            if record is not None and not batch:  # the thread that runs the call records it
                record.add("model", max(0.0, min(entry.ended_s, now_s) - entry.started_s))

    def _take_batch(self, entry: PendingRequest[K]) -> tuple[list[PendingRequest[K]], float]:
        """Return a batch to run, or none and when to try again.

        Raises ModelTimeout after the deadline, also if another thread is about to run the batch.
        """
        with self._lock:
            now_s = time.monotonic()
            is_queued = entry.started_s == math.inf
            if is_queued and self._free_calls and self._batch_is_due(now_s):
                batch = [request for request in self._waiting if request.key == self._waiting[0].key]
                batch = batch[: even_batch_size(min(len(batch), MAX_ROWS))]
                if entry in batch:
                    self._free_calls -= 1
                    for request in batch:
                        request.started_s = now_s
                    self._remove(batch)
                    return batch, now_s
                self._waiting[0].wake_up.put(None)
            if entry.future.done():
                return [], now_s
            has_gone = is_abandoned()
            if has_gone or now_s >= entry.deadline_s:
                if is_queued:
                    self._remove([entry])
                if has_gone:
                    raise ClientGone("The client closed the connection while the model server was busy.")
                raise ModelTimeout("The deadline passed while the model server was busy; try again later.")
            if is_queued and self._free_calls and entry is self._waiting[0]:
                return [], min(entry.deadline_s, self._wait_until_s)
            return [], entry.deadline_s

    def _batch_is_due(self, now_s: float) -> bool:
        """Return whether a batch of the waiting requests starts now."""
        # With one call at a time, this is unknown: other workers may keep the model server busy.
        is_idle = self._free_calls == self._max_calls > 1
        return is_idle or len(self._waiting) >= self._expected or now_s >= self._wait_until_s

    def _remove(self, requests: Sequence[PendingRequest[K]]) -> None:
        """Remove `requests` from the queue; wake the new first one."""
        for request in requests:
            self._waiting.remove(request)
        if self._free_calls and self._waiting:
            self._waiting[0].wake_up.put(None)

    def _run_batch(self, batch: Sequence[PendingRequest[K]]) -> None:
        """Run one Predict call for `batch`, then each request's `on_pixels`."""
        started_s = time.monotonic()
        images: Sequence[Pixels] = []
        failed: BaseException | None = None
        try:
            latest_s = max(request.deadline_s for request in batch)
            images = self._generate(batch[0].key, [request.seed for request in batch], latest_s)
        except BaseException as error:
            failed = error
        ended_s = time.monotonic()
        with self._lock:
            self._free_calls += 1
            self._expected = even_batch_size(min(len(self._waiting) + len(batch), ENOUGH_ROWS))
            self._wait_until_s = ended_s + min(WAIT_RATIO * (ended_s - started_s), MAX_WAIT_S)
            if self._waiting:
                self._waiting[0].wake_up.put(None)
        for row, request in enumerate(batch):
            request.ended_s = ended_s
            try:
                if failed is not None:
                    raise failed
                request.future.set_result(request.on_pixels(images[row]))
            except BaseException as error:
                request.future.set_exception(error)
        for request in batch:  # at the end: woken threads compete for the interpreter's lock
            request.wake_up.put(None)


def even_batch_size(requests: int) -> int:
    """Return the batch size for this number of requests.

    An odd number of rows from 3 up takes as long as one row more: the graph pads it (training/export/signatures.py).
    """
    return requests if requests == 1 else requests - requests % 2
