"""How painted pictures lie in a folder: as files, or as the tar shards that WebDataset reads.

Where a picture lies follows from its seed alone, and so do all bytes of a tar but the pictures': what several runs
painted, together, is what one would have painted. Whatever has its name is whole.
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

ASIDE = ".part"  # what is being written


@dataclass(frozen=True)
class Painted:
    """A picture and what it is."""

    seed: int
    sha256: str  # of `data`, hexadecimal
    model_version: int
    data: bytes


@dataclass(frozen=True)
class Files:
    """One file a picture, in folders of `per_folder` seeds: 000042/000042007.png."""

    out: Path
    suffix: str
    per_folder: int

    def name(self, seed: int) -> str:
        """Return where the picture of `seed` lies, relative to the folder."""
        return f"{seed // self.per_folder:06d}/{seed:09d}.{self.suffix}"

    def digests(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield those of `seeds` whose files are there, with the SHA-256 of what is in them."""
        for seed in seeds:
            try:
                with (self.out / self.name(seed)).open("rb") as file:
                    yield seed, hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                continue

    def store(self, pictures: Iterable[Painted]) -> Iterator[list[Painted]]:
        """Write `pictures`, and yield each when it has its name. Raises OSError."""
        for picture in pictures:
            path = self.out / self.name(picture.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _aside(path) as aside:
                aside.write_bytes(picture.data)
            yield [picture]


@dataclass(frozen=True)
class Tars:
    """One tar for `per_folder` seeds, 000042.tar: of each a picture and a .json that says what it is."""

    out: Path
    suffix: str
    per_folder: int

    def name(self, seed: int) -> str:
        """Return the tar in which the picture of `seed` lies, relative to the folder."""
        return f"{seed // self.per_folder:06d}.tar"

    def digests(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield the seeds in the tar of `seeds`, all of one, with the SHA-256 of their pictures; none if it is torn."""
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
        """Write `pictures`, the whole of one tar, and yield them without data when it has its name. Raises OSError."""
        pictures = iter(pictures)
        first = next(pictures)
        path = self.out / self.name(first.seed)
        stored = []
        with _aside(path) as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in chain([first], pictures):
                facts = {"seed": picture.seed, "model_version": picture.model_version, "sha256": picture.sha256}
                for suffix, data in ((self.suffix, picture.data), ("json", json.dumps(facts).encode())):
                    member = tarfile.TarInfo(f"{picture.seed:09d}.{suffix}")  # of nobody, from 1970
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                stored.append(replace(picture, data=b""))
        yield stored


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a path to write what `path` shall hold; afterwards it has that name, or is gone if anything was raised."""
    aside = path.with_name(path.name + ASIDE)
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
