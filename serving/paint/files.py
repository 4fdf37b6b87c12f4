"""Layouts of an output folder: single files, or tar shards for WebDataset.

The path of an image depends on its seed alone, so several runs together write the same files as one. Files are renamed
into place when they are complete.
"""

import errno
import fcntl
import filecmp
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from serving.pb.ringo.v1.picture_service_pb2 import Picture

TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)  # tarfile's own, of damage
TAKEN = "it has other bytes, and the manifest does not name it; move it away, or choose another folder"
ASIDE = ".part"  # suffix of an incomplete file


@dataclass(frozen=True)
class Layout:
    """Images in `out`, with `per_folder` seeds in a folder or tar."""

    out: Path
    suffix: str
    per_folder: int
    replaceable: set[str] = field(default_factory=set)  # files of the manifest that are damaged or incomplete

    def _put(self, name: str) -> None:
        """Rename the complete file to `name`. Raises OSError if it is taken."""
        path = self.out / name
        aside = _aside(path)
        if name not in self.replaceable and path.exists() and not filecmp.cmp(aside, path, shallow=False):
            aside.unlink()
            raise FileExistsError(errno.EEXIST, TAKEN, str(path))
        aside.replace(path)


class Files(Layout):
    """One file for each image, in folders of `per_folder` seeds: 000042/000042007.png."""

    def name(self, seed: int) -> str:
        """Return the path of the image of `seed`, relative to the folder."""
        return f"{seed // self.per_folder:06d}/{seed:09d}.{self.suffix}"

    def digests(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield those of `seeds` whose files exist, with the SHA-256 of each."""
        for seed in seeds:
            with suppress(FileNotFoundError), open_file(self.out / self.name(seed)) as file:
                yield seed, hashlib.file_digest(file, "sha256").hexdigest()

    def store(self, pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
        """Write `pictures`, and yield each when its file is complete. Raises OSError."""
        for picture in pictures:
            path = self.out / self.name(picture.seed)
            if path.parent.is_symlink():
                raise OSError(errno.ENOTDIR, "it is a link, not a folder; move it away", str(path.parent))
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_file(_aside(path), append=True) as file:  # locked until it has its name
                file.truncate(0)
                file.write(picture.data)
                file.flush()
                self._put(self.name(picture.seed))
            yield [picture]


class Tars(Layout):
    """One tar for `per_folder` seeds, 000042.tar: an image and a .json each.

    An incomplete tar has the suffix ASIDE and holds its first seeds; a rerun appends the others.
    """

    def name(self, seed: int) -> str:
        """Return the path of the tar of `seed`, relative to the folder."""
        return f"{seed // self.per_folder:06d}.tar"

    def is_complete(self, seed: int) -> bool:
        """Return whether the tar of `seed` is written to its end."""
        return (self.out / self.name(seed)).exists()

    def digests(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield seeds and SHA-256 of a tar, complete or not, until damage."""
        seed = next(iter(seeds))
        path = self.out / self.name(seed)
        with suppress(FileNotFoundError), open_file(path if self.is_complete(seed) else _aside(path)) as file:
            for member_seed, digest, _ in self._images(file):
                yield member_seed, digest

    def store(self, pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
        """Append `pictures` to their one tar. Raises OSError.

        Yields each without its data when it is written. If another tar has that name, all are yielded at the end: their
        rows would make that tar replaceable.
        """
        pictures = iter(pictures)
        first = next(pictures)
        path = self.out / self.name(first.seed)
        is_own = self.name(first.seed) in self.replaceable
        others = {} if is_own else dict(self.digests([first.seed]))
        if others and others.get(first.seed) != first.sha256.hex():
            raise FileExistsError(errno.EEXIST, TAKEN, str(path if path.exists() else _aside(path)))
        is_taken = path.exists() and not is_own
        if not is_taken:  # a further call may continue it with another version
            self.replaceable.add(self.name(first.seed))
        written: list[Picture] = []
        with open_file(_aside(path), append=True) as file:
            file.seek(0)
            file.truncate(max((end for seed, _, end in self._images(file) if seed < first.seed), default=0))
            file.seek(0, os.SEEK_END)
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for picture in chain([first], pictures):
                    sha256 = picture.sha256.hex()
                    facts = {"seed": picture.seed, "model_version": picture.model_version, "sha256": sha256}
                    for suffix, data in ((self.suffix, picture.data), ("json", json.dumps(facts).encode())):
                        member = tarfile.TarInfo(f"{picture.seed:09d}.{suffix}")  # without owner and time
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    file.flush()
                    picture.ClearField("data")
                    if is_taken:
                        written.append(picture)
                    else:
                        yield [picture]
            file.flush()
            self._put(self.name(first.seed))
        yield written

    def _images(self, file: BinaryIO) -> Iterator[tuple[int, str, int]]:
        """Yield seed, SHA-256 and end offset of each image; end at damage."""
        found: list[tuple[int, str]] = []
        with suppress(*TAR_ERRORS), tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                content = tar.extractfile(member) if member.isreg() and stem.isdecimal() else None
                if content is not None and suffix != "json":  # also of another format
                    found = [(int(stem), hashlib.sha256(content.read()).hexdigest())]
                elif content is not None and len(content.read()) == member.size:
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    for seed, digest in found:
                        yield seed, digest, end


def open_file(path: Path, *, append: bool = False) -> io.BufferedReader | io.BufferedRandom:
    """Open a regular file; with `append`, create and lock it.

    Raises OSError, also for a FIFO, and with `append` for a locked file or a link, whose target may be foreign.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat(follow_symlinks=not append).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file; move it away", str(path))
    if append:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.fdopen(os.open(path, flags, 0o666), "a+b")
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):  # else it was renamed before the lock
                return file
        file.close()
        raise OSError(errno.EBUSY, "another process writes it; wait until it ends", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ASIDE)
