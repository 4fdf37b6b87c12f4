"""Layouts of images in a folder: single files, or tar shards for WebDataset.

The path of an image depends on its seed alone, so several runs together write the files of one. Files are renamed into
place when they are complete.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

ASIDE = ".part"  # suffix of an incomplete file


@dataclass(frozen=True)
class Painted:
    """An image and its facts."""

    seed: int
    sha256: str  # of `data`, hexadecimal
    model_version: int
    data: bytes


@dataclass(frozen=True)
class Files:
    """One file for each image, in folders of `per_folder` seeds: 000042/000042007.png."""

    out: Path
    suffix: str
    per_folder: int

    def name(self, seed: int) -> str:
        """Return the path of the image of `seed`, relative to the folder."""
        return f"{seed // self.per_folder:06d}/{seed:09d}.{self.suffix}"

    def digests(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield those of `seeds` whose files exist, with the SHA-256 of each."""
        for seed in seeds:
            try:
                with (self.out / self.name(seed)).open("rb") as file:
                    yield seed, hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                continue

    def store(self, pictures: Iterable[Painted]) -> Iterator[list[Painted]]:
        """Write `pictures`, and yield each when its file is complete. Raises OSError."""
        for picture in pictures:
            path = self.out / self.name(picture.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _aside(path) as aside:
                aside.write_bytes(picture.data)
            yield [picture]


@dataclass(frozen=True)
class Tars:
    """One tar for `per_folder` seeds, 000042.tar: of each an image and a .json with its facts."""

    out: Path
    suffix: str
    per_folder: int

    def name(self, seed: int) -> str:
        """Return the path of the tar of `seed`, relative to the folder."""
        return f"{seed // self.per_folder:06d}.tar"

    def digests(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield the seeds in their one tar, with SHA-256; none if damaged."""
        try:
            with tarfile.open(self.out / self.name(next(iter(seeds)))) as tar:
                for member in tar:
                    stem, _, suffix = member.name.partition(".")
                    content = tar.extractfile(member)
                    if suffix == self.suffix and stem.isdecimal() and content is not None:
                        yield int(stem), hashlib.sha256(content.read()).hexdigest()
        except (FileNotFoundError, tarfile.TarError):
            return

    def store(self, pictures: Iterable[Painted]) -> Iterator[list[Painted]]:
        """Write one tar of `pictures`, then yield them without data. Raises OSError."""
        pictures = iter(pictures)
        first = next(pictures)
        path = self.out / self.name(first.seed)
        stored = []
        with _aside(path) as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in chain([first], pictures):
                facts = {"seed": picture.seed, "model_version": picture.model_version, "sha256": picture.sha256}
                for suffix, data in ((self.suffix, picture.data), ("json", json.dumps(facts).encode())):
                    member = tarfile.TarInfo(f"{picture.seed:09d}.{suffix}")  # without owner and time
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                stored.append(replace(picture, data=b""))
        yield stored


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards rename it to `path`, or remove it after an error."""
    aside = path.with_name(path.name + ASIDE)
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
