"""What glibc's allocator has to be told, so that a process that encodes large pictures stays small."""

import ctypes
import sys
from functools import cache
from typing import Any

M_MMAP_THRESHOLD = -3  # from malloc.h, as what follows
# libdeflate takes 0.7 MB for each picture. With glibc's own first 0.1 MB that was 60 page faults, and 5 % of a lone
# request.
MMAP_THRESHOLD_BYTES = 2**20
M_TRIM_THRESHOLD = -1
TRIM_THRESHOLD_BYTES = 2**21
M_ARENA_MAX = -8
ARENAS = 2  # by default eight a core, each of which keeps some of what it was at its fullest: 4 MB of a gateway


def keep_little() -> None:
    """Have large blocks given back to the system when they are freed, for ever, and few pools of small ones.

    glibc raises its threshold with each large block that is freed, and then keeps such blocks: after eight sheets of
    2048 x 2048 a worker held 366 MB.
    """
    if sys.platform == "linux":
        _libc().mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        _libc().mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        _libc().mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give the free pages between small blocks back to the system.

    Encoders leave some behind: with 64 sheets of 1024 x 1024 under way at a time a gateway grew from 66 to 99 MB, and
    grows to 73 MB with this, its cache apart.
    """
    if sys.platform == "linux" and hasattr(_libc(), "malloc_trim"):  # which musl lacks
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
