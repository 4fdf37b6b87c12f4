"""What a folder of painted pictures holds of the seeds that are asked for, and what is missing."""

import heapq
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from serving.paint.client import PaintingError
from serving.paint.files import Files, Painted, Tars
from serving.paint.manifest import Row
from serving.paint.seeds import Seeds
from serving.rendering.query import Picture, canonical_url

CALL_SEEDS = 256  # of one call where each picture is a file: a stream of a second or two, so that replicas take turns


class Holdings:
    """Which of `seeds` are in the folder already: 41 bytes a seed, however long the list."""

    def __init__(self, seeds: Seeds, layout: Files | Tars, query: Picture) -> None:
        self._seeds = seeds
        self._layout = layout
        self._query = query
        self._there = np.zeros(len(seeds), bool)
        self._digests = np.zeros((len(seeds), 32), np.uint8)
        self._versions = np.zeros(len(seeds), np.int64)
        self._others: list[Row] = []  # of seeds that this command doesn't name
        self._strangers: dict[str, int] = {}  # of those that lie in tars, one for each tar
        self._seen_versions: set[int] = set()

    @property
    def count(self) -> int:
        """How many are there."""
        return int(self._there.sum())

    @property
    def versions(self) -> set[int]:
        """The model versions that painted them, and whatever else is in the folder."""
        return self._seen_versions | set(self._versions[self._there].tolist())

    def add(self, row: Row) -> None:
        """Take `row`, of this command's manifest, for true. Raises what `see` does."""
        if self._seeds.place(row.seed) is None:
            self.see(row)
            self._others.append(row)
        else:
            self._require_the_like(row)
            self._hold(row)

    def see(self, row: Row) -> None:
        """Take `row`, of whatever manifest is in the folder, for what this command must not spoil.

        Raises PaintingError if it is of other options or another layout.
        """
        self._require_the_like(row)
        self._seen_versions.add(row.model_version)
        if isinstance(self._layout, Tars) and self._seeds.place(row.seed) is None:
            self._strangers[row.file] = row.seed

    def take(self, picture: Painted) -> Row:
        """Take `picture`, which has just been painted and lies where it belongs, and return its row."""
        row = self._row(picture)
        self._hold(row)
        return row

    def check(self) -> None:
        """Forget what is not in the folder, or is not what its row says. A tar counts as a whole.

        Raises PaintingError if a tar has to be written that holds other seeds, too: it would lose them.
        """
        behind = 0
        for group in self._seeds.groups(self._layout.per_folder):
            places = slice(behind, behind := behind + len(group))
            if self._there[places].any():
                found = dict(self._layout.digests(group))
                for place, seed in enumerate(group, places.start):
                    self._there[place] &= found.get(seed) == self._digests[place].tobytes().hex()
            if isinstance(self._layout, Tars) and not self._there[places].all():
                self._there[places] = False
                tar = self._layout.name(next(iter(group)))
                if tar in self._strangers:
                    raise PaintingError(
                        f"{tar} holds seed {self._strangers[tar]}, which --seeds doesn't name: a tar is written as a "
                        "whole, so name all that it is to hold."
                    )

    def missing(self) -> Iterator[list[int]]:
        """Yield the seeds to be painted, in parts for one call each."""
        if isinstance(self._layout, Tars):
            groups = self._seeds.groups(self._layout.per_folder)
            yield from (list(group) for group in groups if not self._holds(next(iter(group))))
            return
        part: list[int] = []
        for seed in self._seeds:
            if not self._holds(seed):
                part.append(seed)
            if len(part) == CALL_SEEDS:
                yield part
                part = []
        if part:
            yield part

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all that is there, in the seeds' order."""
        mine = (
            self._row(Painted(seed, digest.tobytes().hex(), int(version), b""))
            for seed, there, digest, version in zip(
                self._seeds, self._there, self._digests, self._versions, strict=True
            )
            if there
        )
        return heapq.merge(mine, sorted(self._others, key=_seed), key=_seed)

    def _require_the_like(self, row: Row) -> None:
        if row.picture != self._address(row.seed, row.model_version):
            raise PaintingError(f"The folder holds {row.picture}: other options than these need a folder of their own.")
        if row.file != self._layout.name(row.seed):
            raise PaintingError(
                f"The folder holds seed {row.seed} in {row.file}: go on with the layout it was begun with."
            )

    def _hold(self, row: Row) -> None:
        place = self._seeds.place(row.seed)
        self._there[place] = True
        self._digests[place] = np.frombuffer(bytes.fromhex(row.sha256), np.uint8)
        self._versions[place] = row.model_version

    def _row(self, picture: Painted) -> Row:
        where, what = self._layout.name(picture.seed), self._address(picture.seed, picture.model_version)
        return Row(picture.seed, where, picture.sha256, picture.model_version, what)

    def _holds(self, seed: int) -> bool:
        return bool(self._there[self._seeds.place(seed)])

    def _address(self, seed: int, version: int) -> str:
        return canonical_url(replace(self._query, seed=seed, version=version))


def _seed(row: Row) -> int:
    return row.seed
