"""The split into training and held-out photos.

Training never uses held-out photos, so an evaluation can compare generated images with unseen photos. Frames of a
series (a turntable, a burst, a film) differ little from their neighbours, so a single held-out frame would not count as
unseen. Whole groups of consecutive photos are held out instead. The file names alone decide which.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

DIGITS = "0123456789"
MIN_SERIES = 20  # photos; a group of a shorter series would be one or two frames


@dataclass(frozen=True)
class PhotoGroup:
    """Consecutive photos of a series, `first` to `last`, maybe wrapping around."""

    first: str
    last: str
    photos: int


@dataclass(frozen=True)
class Split:
    """Row numbers of training and held-out photos, each in ascending order."""

    training: NDArray[np.intp]
    held_out: NDArray[np.intp]
    groups: tuple[PhotoGroup, ...]  # of the held-out photos

    def describe(self) -> str:
        """Return a sentence about the held-out photos."""
        if not self.groups:
            return "No photo is held out."
        photos = len(self.training) + len(self.held_out)
        groups = "one group" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        return f"Held out of training: {len(self.held_out):,} of {photos:,} photos, in {groups} of consecutive photos."


def split_photos(files: Sequence[str], fraction: float) -> Split:
    """Hold out about `fraction` of the photos named `files`, in groups.

    Each pool gives one group, at a position fixed by its name. The result depends on names and fraction alone.
    """
    groups = []
    for name, rows in find_pools(files).items():
        if length := round(fraction * len(rows)):
            start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(rows)
            groups.append([*rows, *rows][start : start + length])
    held_out = sorted(row for group in groups for row in group)
    return Split(
        training=np.setdiff1d(np.arange(len(files)), held_out),
        held_out=np.array(held_out, np.intp),
        groups=tuple(PhotoGroup(files[group[0]], files[group[-1]], len(group)) for group in groups),
    )


def find_pools(files: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of every pool of neighbouring photos, in order.

    A pool is a series of MIN_SERIES photos or more, all other photos of a folder if there are as many, or the rest.
    """
    pools = _find_series(files)
    for _ in range(2):  # short series of a folder join, then short folders
        joined = {name: rows for name, rows in pools.items() if len(rows) >= MIN_SERIES}
        for row, key in sorted((row, name) for name in pools.keys() - joined.keys() for row in pools[name]):
            joined.setdefault(key.rpartition("/")[0], []).append(row)
        pools = joined
    return pools


def _find_series(files: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of every series, sorted by frame number.

    The key is folder and stem without the frame number. A common ending of all stems of a folder is not part of the
    number: `7_100.jpg` is frame 7, not 100. Only the name of the innermost folder counts: Training/Apple 5/ and
    Test/Apple 5/ may each hold every other frame of one turn.
    """
    paths = [PurePosixPath(file) for file in files]
    stems: dict[str, list[str]] = {}
    for path in paths:
        stems.setdefault(path.parent.name, []).append(path.stem)
    endings = {
        folder: commonprefix([stem[::-1] for stem in names])[::-1]  # noqa: RUF071 (characters are meant)
        for folder, names in stems.items()
    }
    series: dict[str, list[tuple[int, int]]] = {}
    for row, path in enumerate(paths):
        folder = path.parent.name
        stem = path.stem.removesuffix(endings[folder].lstrip(DIGITS))  # leading digits belong to the number
        name = stem.rstrip(DIGITS)
        series.setdefault(f"{folder}/{name}", []).append((int(stem[len(name) :] or 0), row))
    return {name: [row for _, row in sorted(frames)] for name, frames in series.items()}
