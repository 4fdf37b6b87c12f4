"""Predict calls joined: who asks for a picture while others are being painted goes along with the next call.

A call for 8 pictures takes about 5 times as long as one for 1, so under load each costs less; nobody waits for company
while a call could begin. What callers do with their pictures is done for all of a call by one thread, which begins once
the next call is on its way: eight threads that wake at once would take the interpreter's lock from each other, and from
the next call.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serving.errors import ModelTimeout
from serving.model_client import MAX_ROWS
from serving.observation import current, waited
from serving.pictures import Pixels
from serving.tracing import Trace, current_trace, within

# Takes a model version, seeds and a deadline by time.monotonic; returns one picture per seed, in order.
Generate = Callable[[int, Sequence[int], float], Sequence[Pixels]]
T = TypeVar("T")


@dataclass(eq=False)
class _Waiting:
    version: int
    seed: int
    then: Callable[[Pixels], Any]
    deadline_s: float
    since_s: float = field(default_factory=time.monotonic)
    trace: Trace = field(default_factory=current_trace)
    began_s: float = math.inf  # when the call began
    ended_s: float = math.inf
    result: Future[Any] = field(default_factory=Future)


class JoinedCalls:
    """Makes at most `at_a_time` calls of `generate` at a time, of up to MAX_ROWS rows. Threads may share it."""

    def __init__(self, generate: Generate, *, at_a_time: int) -> None:
        self._generate = generate
        self._calls = ThreadPoolExecutor(at_a_time, thread_name_prefix="call")
        self._hands = ThreadPoolExecutor(at_a_time, thread_name_prefix="hand-out")
        self._lock = threading.Lock()  # guards what follows
        self._free = at_a_time
        self._waiting: deque[_Waiting] = deque()

    def picture(self, version: int, seed: int, then: Callable[[Pixels], T], *, deadline_s: float = math.inf) -> T:
        """Return what `then` makes of the picture of `seed`, in this thread or another, by `deadline_s`.

        That is a time of time.monotonic. Raises what `then` does; what `generate` does, to all whose rows were in the
        call; and ModelTimeout to whom it comes too late.
        """
        with self._lock:
            lone = self._free > 0  # so nobody is waiting
            if lone:
                self._free -= 1
            else:
                mine = _Waiting(version, seed, then, deadline_s)
                self._waiting.append(mine)
        if lone:  # in the caller's own thread: another would have to be woken
            try:
                (pixels,) = self._generate(version, [seed], deadline_s)
            finally:
                part = self._next()
                if part:
                    self._calls.submit(self._call, part)
            return then(pixels)
        try:
            made: T = mine.result.result(min(max(0.0, deadline_s - time.monotonic()), threading.TIMEOUT_MAX))
            return made
        except TimeoutError:
            mine.result.cancel()  # if it is not on its way yet, it won't be
            raise ModelTimeout("The model server was busy with others until the caller's time was up.") from None
        finally:
            began_s = min(mine.began_s, mine.ended_s, time.monotonic())
            waited("queue", began_s - mine.since_s)
            seen = current()
            if seen is not None:  # the call itself is measured once
                seen.add("model", min(mine.ended_s, time.monotonic()) - began_s)

    def _next(self) -> list[_Waiting]:
        """Return who goes along with another call; without anybody, there is none."""
        with self._lock:
            part = self._take()
            if not part:
                self._free += 1
            return part

    def _take(self) -> list[_Waiting]:
        """Take those who go along with whoever has waited longest."""
        part: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        while self._waiting and len(part) < MAX_ROWS:
            one = self._waiting.popleft()
            if part and one.version != part[0].version:
                others.append(one)
            elif one.result.set_running_or_notify_cancel():
                part.append(one)
        self._waiting.extendleft(reversed(others))
        return part

    def _call(self, part: list[_Waiting]) -> None:
        """Make a call for `part`, and as long as anybody waits at its end, another."""
        while part:
            began_s = time.monotonic()
            for one in part:
                one.began_s = began_s
            try:
                latest_s = max(one.deadline_s for one in part)
                with within(part[0].trace):  # a call is part of one trace: of who has waited longest
                    pictures = self._generate(part[0].version, [one.seed for one in part], latest_s)
            except BaseException as error:
                for one in part:
                    one.result.set_exception(error)
            else:
                self._hands.submit(_hand_out, part, pictures, time.monotonic())
            part = self._next()


def _hand_out(part: Sequence[_Waiting], pictures: Sequence[Pixels], ended_s: float) -> None:
    """Do what each of `part` does with his picture, and then wake all of them."""
    outcomes: list[tuple[Callable[[Any], None], Any]] = []
    for one, pixels in zip(part, pictures, strict=True):
        one.ended_s = ended_s
        try:
            outcomes.append((one.result.set_result, one.then(pixels)))
        except BaseException as error:
            outcomes.append((one.result.set_exception, error))
    for tell, outcome in outcomes:
        tell(outcome)
