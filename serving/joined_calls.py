"""Predict calls joined: who asks for a picture while others are being painted goes along with the next call.

A call for 8 pictures takes about 5 times as long as one for 1, so under load each costs less; nobody waits for company
while a call could begin.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from serving.errors import ModelTimeout
from serving.model_client import MAX_ROWS
from serving.observation import current, waited
from serving.pictures import Pixels
from serving.tracing import Trace, current_trace, within

# Takes a model version, seeds and a deadline by time.monotonic; returns one picture per seed, in order.
Generate = Callable[[int, Sequence[int], float], Sequence[Pixels]]


@dataclass(eq=False)
class _Waiting:
    version: int
    seed: int
    deadline_s: float
    since_s: float = field(default_factory=time.monotonic)
    trace: Trace = field(default_factory=current_trace)
    began_s: float = math.inf  # when the call began
    picture: Future[Pixels] = field(default_factory=Future)


class JoinedCalls:
    """Makes at most `at_a_time` calls of `generate` at a time, of up to MAX_ROWS rows. Threads may share it."""

    def __init__(self, generate: Generate, *, at_a_time: int) -> None:
        self._generate = generate
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="joined")
        self._lock = threading.Lock()  # guards what follows
        self._free = at_a_time
        self._waiting: deque[_Waiting] = deque()

    def picture(self, version: int, seed: int, *, deadline_s: float = math.inf) -> Pixels:
        """Return the picture of `seed`, by `deadline_s` of time.monotonic.

        Raises what `generate` does, to all whose rows were in the call, and ModelTimeout to whom it comes too late.
        """
        with self._lock:
            lone = self._free > 0  # so nobody is waiting
            if lone:
                self._free -= 1
            else:
                mine = _Waiting(version, seed, deadline_s)
                self._waiting.append(mine)
        if lone:  # in the caller's own thread: another would have to be woken
            try:
                return self._generate(version, [seed], deadline_s)[0]
            finally:
                self._next()
        try:
            return mine.picture.result(min(max(0.0, deadline_s - time.monotonic()), threading.TIMEOUT_MAX))
        except TimeoutError:
            mine.picture.cancel()  # if it is not on its way yet, it won't be
            raise ModelTimeout("The model server was busy with others until the caller's time was up.") from None
        finally:
            ended_s = time.monotonic()
            began_s = min(mine.began_s, ended_s)
            waited("queue", began_s - mine.since_s)
            seen = current()
            if seen is not None:  # the call itself is measured once
                seen.add("model", ended_s - began_s)

    def _next(self) -> None:
        """Begin another call if anybody waits for one."""
        with self._lock:
            part = self._take()
            if not part:
                self._free += 1
                return
        self._threads.submit(self._answer, part)

    def _take(self) -> list[_Waiting]:
        """Take those who go along with whoever has waited longest."""
        part: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        while self._waiting and len(part) < MAX_ROWS:
            one = self._waiting.popleft()
            if part and one.version != part[0].version:
                others.append(one)
            elif one.picture.set_running_or_notify_cancel():
                part.append(one)
        self._waiting.extendleft(reversed(others))
        return part

    def _answer(self, part: Sequence[_Waiting]) -> None:
        for one in part:
            one.began_s = time.monotonic()
        try:
            latest_s = max(one.deadline_s for one in part)
            with within(part[0].trace):  # a call is part of one trace: of who has waited longest
                pictures = self._generate(part[0].version, [one.seed for one in part], latest_s)
        except BaseException as error:
            for one in part:
                one.picture.set_exception(error)
        else:
            for one, pixels in zip(part, pictures, strict=True):
                one.picture.set_result(pixels)
        finally:
            self._next()
