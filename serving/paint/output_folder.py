"""The complete and the missing images of an output folder."""

import heapq
from collections.abc import Iterator
from dataclasses import replace
from itertools import compress, groupby, islice
from operator import attrgetter

import numpy as np

from serving.paint.client import PaintError
from serving.paint.files import Files, Tars
from serving.paint.manifest import Row
from serving.paint.seeds import Seeds
from serving.pb.ringo.v1 import picture_service_pb2 as pb
from serving.rendering.query import Picture, canonical_url

CALL_SEEDS = 256  # of one call for single files: a stream of a second or two, so that replicas share the work


class OutputFolder:
    """The state of each seed in the folder, in 41 bytes per seed."""

    def __init__(self, seeds: Seeds, layout: Files | Tars, query: Picture) -> None:
        self._seeds = seeds
        self._layout = layout
        self._query = query
        self._there = np.zeros(len(seeds), bool)
        self._digests = np.zeros((len(seeds), 32), np.uint8)
        self._versions = np.zeros(len(seeds), np.int64)
        self._others: list[Row] = []  # of seeds beside `seeds`
        self._others_in_tars: dict[str, int] = {}  # one such seed of each tar
        self._seen_versions: set[int] = set()

    @property
    def count(self) -> int:
        """The number of complete images."""
        return int(self._there.sum())

    @property
    def versions(self) -> set[int]:
        """The model versions of all images in the folder."""
        return self._seen_versions | set(self._versions[self._there].tolist())

    def add(self, row: Row, *, is_own: bool) -> None:
        """Add `row` of this command's manifest or another one; or raise PaintError."""
        if row.picture != self._url(row.seed, row.model_version):
            raise PaintError(f"The folder holds {row.picture}; other options need another folder.")
        if row.file != self._layout.name(row.seed):
            raise PaintError(f"The folder holds seed {row.seed} in {row.file}; use the layout of the first run.")
        is_chosen = self._seeds.place(row.seed) is not None
        if is_own and is_chosen:
            self._hold(row)
            return
        self._seen_versions.add(row.model_version)
        if is_own:
            self._others.append(row)
        if isinstance(self._layout, Tars) and not is_chosen:
            self._others_in_tars[row.file] = row.seed

    def take(self, picture: pb.Picture) -> Row:
        """Add `picture`, whose file is written, and return its row."""
        row = self._row(picture.seed, picture.sha256.hex(), picture.model_version)
        self._hold(row)
        return row

    def check(self) -> int:
        """Forget missing and damaged images; return the number without a row.

        One such image in a complete tar makes the whole tar missing. Raises PaintError if that tar has other seeds,
        too, which would be lost. Single files without a row are found only in subfolders that rows name.
        """
        behind = unnamed = 0
        for _, seeds in groupby(self._seeds, lambda seed: seed // self._layout.per_folder):
            group = list(seeds)
            places = slice(behind, behind := behind + len(group))
            first, is_named = group[0], self._there[places].any()
            if is_named or isinstance(self._layout, Tars):
                found = dict(self._layout.digests(group))
                unnamed += sum(seed in found for seed in compress(group, ~self._there[places]))
                for place, seed in enumerate(group, places.start):
                    if self._there[place] and found.get(seed) != self._digests[place].tobytes().hex():
                        self._there[place] = False
                        self._layout.replaceable.add(self._layout.name(seed))
            if isinstance(self._layout, Tars) and not (self._there[places].all() and self._layout.is_complete(first)):
                self._there[places.stop - 1] = False  # the tar has no name yet
                is_anew = self._layout.is_complete(first)  # else it is continued from the first missing image on
                self._there[places] = False if is_anew else np.logical_and.accumulate(self._there[places])
                tar = self._layout.name(first)
                if is_named:
                    self._layout.replaceable.add(tar)
                unnamed_seeds = (seed for seed in found if self._seeds.place(seed) is None)
                if (other := self._others_in_tars.get(tar, next(unnamed_seeds, None))) is not None:
                    raise PaintError(
                        f"{tar} holds seed {other}, which --seeds doesn't name; a tar is written as a whole, so name "
                        "all its seeds."
                    )
        return unnamed

    def missing(self) -> Iterator[list[int]]:
        """Yield the missing seeds of each call."""
        missing = compress(self._seeds, ~self._there)
        if isinstance(self._layout, Tars):
            yield from (list(seeds) for _, seeds in groupby(missing, self._layout.name))
        else:
            while seeds := list(islice(missing, CALL_SEEDS)):
                yield seeds

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all complete images, in the order of seeds."""
        own = (
            self._row(seed, self._digests[place].tobytes().hex(), int(self._versions[place]))
            for place, seed in enumerate(self._seeds)
            if self._there[place]
        )
        return heapq.merge(own, sorted(self._others, key=attrgetter("seed")), key=attrgetter("seed"))

    def _hold(self, row: Row) -> None:
        place = self._seeds.place(row.seed)
        self._there[place] = True
        self._digests[place] = np.frombuffer(bytes.fromhex(row.sha256), np.uint8)
        self._versions[place] = row.model_version

    def _row(self, seed: int, sha256: str, version: int) -> Row:
        return Row(seed, self._layout.name(seed), sha256, version, self._url(seed, version))

    def _url(self, seed: int, version: int) -> str:
        return canonical_url(replace(self._query, seed=seed, version=version))
