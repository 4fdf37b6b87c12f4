"""Which photos a training never sees, so that what it paints can be compared with some it cannot have learnt by heart.

Frames of a series (a turntable, a burst, a film) are nearly the same picture as their neighbours: one frame held out of
the middle is as good as seen. So whole arcs of consecutive frames are held out, and the file names say which those are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

DIGITS = "0123456789"
LONG_SERIES = 20  # photos; of a shorter one an arc would be a frame or two


@dataclass(frozen=True)
class Arc:
    """Consecutive photos of one series, from `first` to `last`; one that runs past the end goes on at the beginning."""

    first: str
    last: str
    photos: int


@dataclass(frozen=True)
class Split:
    """Row numbers of the photos to train on and of those held out, each in order, and what the latter are."""

    training: NDArray[np.intp]
    held_out: NDArray[np.intp]
    arcs: tuple[Arc, ...]

    def sentence(self) -> str:
        """Return what is held out, in words."""
        if not self.arcs:
            return "No photo is held out."
        photos = len(self.training) + len(self.held_out)
        arcs = "one arc" if len(self.arcs) == 1 else f"{len(self.arcs)} arcs"
        return f"Held out of training: {len(self.held_out):,} of {photos:,} photos, in {arcs} of consecutive ones."


def split_photos(files: Sequence[str], fraction: float) -> Split:
    """Hold out about `fraction` of the photos named `files`, in arcs; the names and the fraction alone decide which.

    Each series of LONG_SERIES photos or more gives one arc, whose place the series' name fixes. All others, taken
    together in the order given, give one more.
    """
    series = _find_series(files)
    long = {name: rows for name, rows in series.items() if len(rows) >= LONG_SERIES}
    short = sorted(row for name, rows in series.items() if name not in long for row in rows)
    arcs = []
    for name, rows in (*long.items(), ("", short)):
        length = round(fraction * len(rows))
        if length:
            start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(rows)
            arcs.append([*rows, *rows][start : start + length])
    held_out = sorted(row for arc in arcs for row in arc)
    return Split(
        training=np.setdiff1d(np.arange(len(files)), held_out),
        held_out=np.array(held_out, np.intp),
        arcs=tuple(Arc(files[arc[0]], files[arc[-1]], len(arc)) for arc in arcs),
    )


def _find_series(files: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of every series in the order of its numbers, by name: folder and stem without the number.

    What all stems of a folder end in is no number (`7_100.jpg` is the seventh, not the hundredth). Of the folder only
    its own name counts: Training/Apple 5/ and Test/Apple 5/ may hold every other frame of one turn.
    """
    paths = [PurePosixPath(file) for file in files]
    stems: dict[str, list[str]] = {}
    for path in paths:
        stems.setdefault(path.parent.name, []).append(path.stem)
    endings = {folder: _common_ending(names) for folder, names in stems.items()}
    found: dict[str, list[tuple[int, int]]] = {}
    for row, path in enumerate(paths):
        folder = path.parent.name
        stem = path.stem.removesuffix(endings[folder])
        name = stem.rstrip(DIGITS)
        found.setdefault(f"{folder}/{name}", []).append((int(stem[len(name) :] or 0), row))
    return {name: [row for _, row in sorted(numbered)] for name, numbered in found.items()}


def _common_ending(stems: Sequence[str]) -> str:
    """Return what all of `stems` end in, from its first character that is no digit."""
    backwards = zip(*(reversed(stem) for stem in stems), strict=False)
    shared = [letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, backwards)]
    return "".join(reversed(shared)).lstrip(DIGITS)
