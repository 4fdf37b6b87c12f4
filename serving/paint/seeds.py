"""Sets of seeds, as in 7,42,100-115."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, chain, pairwise
from typing import Self

from serving.rendering.query import SEED, read_range

MAX_SEEDS = 10**8  # of one run, with 41 bytes each: 4 GB
ALLOWED = (
    "seeds and ranges first-last (both included) between commas, each seed once, as in 7,42,100-115; "
    f"at most {MAX_SEEDS:,}"
)


class Seeds:
    """Seeds in rising order, each once, stored as ranges."""

    def __init__(self, ranges: list[range]) -> None:
        """Raise ValueError if one of `ranges` is empty or two overlap."""
        self._ranges = sorted(ranges, key=lambda part: part.start)
        if not all(self._ranges):
            raise ValueError("has an empty range; write first-last")
        if any(one.stop > other.start for one, other in pairwise(self._ranges)):
            raise ValueError("has a seed twice; give each once")
        self._ends = list(accumulate(len(part) for part in self._ranges))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the seeds that `text` names; raise ValueError for anything but ALLOWED."""
        ranges = []
        for term in text.split(","):
            first, colon, behind = term.partition(":")  # as in earlier releases, without its end
            ranges.append(range(SEED.read(first), SEED.read(behind)) if colon else read_range(term))
        count = sum(part.stop - part.start for part in ranges)  # len() of one may overflow
        if count > MAX_SEEDS:
            raise ValueError(f"is {count:,} seeds; at most {MAX_SEEDS:,} are allowed")
        return cls(ranges)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._ranges)

    def place(self, seed: int) -> int | None:
        """Return the number of seeds before `seed`, or None without `seed`."""
        found = bisect_right(self._ranges, seed, key=lambda part: part.start) - 1
        if found < 0 or seed not in self._ranges[found]:
            return None
        part = self._ranges[found]
        return self._ends[found] - len(part) + seed - part.start

    def between(self, first: int, behind: int) -> "Seeds":
        """Return the seeds from the place `first` to the one before `behind`."""
        cuts = (
            part[max(0, first - end + len(part)) : max(0, behind - end + len(part))]
            for part, end in zip(self._ranges, self._ends, strict=True)
        )
        return Seeds([cut for cut in cuts if cut])
