"""Predict calls joined: callers who want a picture at about the same time share a call, which costs each of them less.

A call for 8 pictures takes about 6 times as long as one for 1. Who has just been answered often asks again soon, so the
next call is held back a little for as many as were in the last one, unless several may be under way and none is: then
the model server would have nothing to do. A lone caller never waits.

Calls are made by their callers' own threads: the one that makes a call does for all in it what they do with their
pictures, too. Eight threads that wake at once would take the interpreter's lock from each other.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from serving.errors import ModelTimeout
from serving.model_client.client import MAX_ROWS
from serving.telemetry.request_log import current, waited

ENOUGH_ROWS = 8  # to begin without waiting for more: from here on a row costs no less
PATIENCE = 0.7  # of the time that the last call took, for its callers to ask again
MAX_PATIENCE_S = 0.02  # 8 of the shipped pictures take as long; what a call has hung for, nobody waits again

# Takes a model version, seeds and a deadline by time.monotonic; returns one picture per seed, in order.
Pixels = npt.NDArray[np.uint8]  # [H, W, 3], sRGB
Generate = Callable[[int, Sequence[int], float], Sequence[Pixels]]
T = TypeVar("T")


@dataclass(eq=False)
class _Caller:
    version: int
    seed: int
    then: Callable[[Pixels], Any]
    deadline_s: float
    since_s: float = field(default_factory=time.monotonic)
    began_s: float = math.inf  # when the call began
    ended_s: float = math.inf
    made: Any = None
    error: BaseException | None = None  # instead of what is made
    done: bool = False
    news: SimpleQueue[None] = field(default_factory=SimpleQueue)  # one item for each time that there is any


class JoinedCalls:
    """Makes at most `at_a_time` calls of `generate` at a time, of up to MAX_ROWS rows. Threads may share it."""

    def __init__(self, generate: Generate, *, at_a_time: int) -> None:
        self._generate = generate
        self._lock = threading.Lock()  # guards what follows
        self._at_a_time = self._free = at_a_time
        self._waiting: deque[_Caller] = deque()  # of whom the first keeps an eye on the time, if a call could begin
        self._expected = 1  # so many callers begin at once;
        self._patient_until_s = 0.0  # from then on, any number

    def picture(self, version: int, seed: int, then: Callable[[Pixels], T], *, deadline_s: float = math.inf) -> T:
        """Return what `then` makes of the picture of `seed`, in this thread or another, by `deadline_s`.

        That is a time of time.monotonic. Raises what `then` does; what `generate` does, to all whose rows were in the
        call; and ModelTimeout to whom it comes too late, but for the one who makes a call: it lasts as long as any of
        its callers has time.
        """
        mine = _Caller(version, seed, then, deadline_s)
        with self._lock:
            self._waiting.append(mine)
        part, until_s = self._look(mine)
        if not part:
            part = self._wait(mine, until_s)
        if part:
            self._make(part)
        if mine.error is not None:
            raise mine.error
        made: T = mine.made
        return made

    def _wait(self, mine: _Caller, until_s: float) -> list[_Caller]:
        """Wait until `mine` is done, or is to make a call; return whom that is for."""
        part: list[_Caller] = []
        try:
            while not part and not mine.done:
                with suppress(Empty):
                    mine.news.get(timeout=min(max(0.0, until_s - time.monotonic()), threading.TIMEOUT_MAX))
                part, until_s = self._look(mine)
            return part
        finally:
            now_s = time.monotonic()
            waited("queue", min(mine.began_s, now_s) - mine.since_s)
            seen = current()
            if seen is not None and not part:  # the call itself is measured once, by who makes it
                seen.add("model", max(0.0, min(mine.ended_s, now_s) - mine.began_s))

    def _look(self, mine: _Caller) -> tuple[list[_Caller], float]:
        """Return whom `mine` is to make a call for; or nobody, and until when to wait for news.

        Raises ModelTimeout if it is too late, whether or not others are about to make the call.
        """
        with self._lock:
            now_s = time.monotonic()
            waits = mine.began_s == math.inf
            if waits and self._free and self._is_time(now_s):
                part = self._company_of(self._waiting[0])
                if mine in part:
                    self._free -= 1
                    for one in part:
                        one.began_s = now_s
                    self._leave(part)
                    return part, now_s
                self._waiting[0].news.put(None)
            if mine.done:
                return [], now_s
            if now_s >= mine.deadline_s:
                if waits:
                    self._leave([mine])
                raise ModelTimeout("The model server was busy with others until the caller's time was up.")
            if waits and self._free and mine is self._waiting[0]:
                return [], min(mine.deadline_s, self._patient_until_s)
            return [], mine.deadline_s

    def _is_time(self, now_s: float) -> bool:
        """Return whether to begin with those who wait. With a single call at a time, other workers may have theirs."""
        nobody_is_busy = self._free == self._at_a_time > 1
        return nobody_is_busy or len(self._waiting) >= self._expected or now_s >= self._patient_until_s

    def _company_of(self, first: _Caller) -> list[_Caller]:
        """Return who is to share a call with `first`, of all who wait."""
        company = [one for one in self._waiting if one.version == first.version]
        return company[: worthwhile(min(len(company), MAX_ROWS))]

    def _leave(self, callers: Sequence[_Caller]) -> None:
        """Take `callers` from those who wait; somebody else may have to keep an eye on the time now."""
        for one in callers:
            self._waiting.remove(one)
        if self._free and self._waiting:
            self._waiting[0].news.put(None)

    def _make(self, part: Sequence[_Caller]) -> None:
        """Make a call for `part` and do what each does with his picture, while others make the next."""
        began_s = time.monotonic()
        pictures: Sequence[Pixels] = []
        failed: BaseException | None = None
        try:
            latest_s = max(one.deadline_s for one in part)
            pictures = self._generate(part[0].version, [one.seed for one in part], latest_s)
        except BaseException as error:
            failed = error
        ended_s = time.monotonic()
        with self._lock:
            self._free += 1
            self._expected = worthwhile(min(len(self._waiting) + len(part), ENOUGH_ROWS))
            self._patient_until_s = ended_s + min(PATIENCE * (ended_s - began_s), MAX_PATIENCE_S)
            if self._waiting:
                self._waiting[0].news.put(None)
        for row, one in enumerate(part):
            one.ended_s = ended_s
            try:
                if failed is not None:
                    raise failed
                one.made = one.then(pictures[row])
            except BaseException as error:
                one.error = error
        for one in part:  # at the end, lest they take the interpreter's lock from us
            one.done = True
            one.news.put(None)


def worthwhile(callers: int) -> int:
    """Return how many of so many callers to make a call for: all, or all but one.

    An odd number of rows from 3 up takes as long as one more, as the graph then adds a row
    (training/export/signatures.py).
    """
    return callers if callers == 1 else callers - callers % 2
