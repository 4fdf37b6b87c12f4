"""Square RGB images of a folder's photos, and counts of skipped files."""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.data.decoding import MAX_FILE_BYTES, RAW_SUFFIX, Result, SkipReason, crop_square, load_heif, read_photo
from training.errors import TrainingError
from training.records import open_atomically, write_record

PROGRESS_DELAY_S = 1.0  # a small folder finishes before its bar appears

_CACHE_LAYOUT = 7  # raise it whenever the same file would give other pixels, or the cache other files


@dataclass(frozen=True)
class PhotoSummary:
    """Counts of used and skipped files: `files == used + sum(skipped.values())`."""

    folder: str
    files: int
    used: int
    skipped: dict[str, int]  # reason to count, without zeros, in the order of SkipReason
    fates: dict[str, str] = field(default_factory=dict)  # each skipped file to its reason

    def format_table(self) -> str:
        """Return the counts as aligned text, without a final newline."""
        rows = {"files found": self.files, "used": self.used, **self.skipped}
        label_width, number_width = max(map(len, rows)), len(f"{self.files:,}")
        lines = [f"  {name:<{label_width}}  {count:>{number_width},}" for name, count in rows.items()]
        return "\n".join([f"photos in {self.folder}", *lines])


@dataclass(frozen=True)
class Photos:
    """Square RGB images, sorted by path; `pixels[i]` comes from `files[i]`."""

    pixels: NDArray[np.uint8]  # [N, S, S, 3], sRGB, read-only: an array or a memory map
    files: tuple[str, ...]  # relative to the folder; unprintable characters are escaped
    summary: PhotoSummary

    @cached_property
    def sha256(self) -> str:
        """The hexadecimal digest of all pixels."""
        return hashlib.sha256(self.pixels.data).hexdigest()


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # relative to the folder, as the file system spells it
    skip_reason: SkipReason | None  # known without opening the file
    stamp: tuple[int, ...] = ()  # changes with the file: read permission, bytes, modification time in ns


def load_photos(
    folder: Path, image_size: int, *, cache_dir: Path, memory_limit_bytes: int, correct_black_level: bool = False
) -> Photos:
    """Return every usable photo in `folder` and below.

    Photos are cropped to the centre square and resized to `image_size`. Hidden files and folders are ignored. Each
    photo is decoded once: into memory if all fit `memory_limit_bytes`, else into a file in `cache_dir`. Later calls
    with an unchanged folder open that file without decoding. Its peak memory does not grow with the number of photos.
    Raises TrainingError if the folder is missing, has no usable photo, or the cache cannot be written.
    """
    files = _find_files(folder)
    max_photos = sum(file.skip_reason is None for file in files)
    read = partial(crop_square, correct_black_level=correct_black_level)
    if max_photos * image_size * image_size * 3 > memory_limit_bytes:
        return _load_through_cache(folder, files, image_size, read, cache_dir)
    pixels = np.empty((max_photos, image_size, image_size, 3), np.uint8)
    rows = iter(pixels)
    names, summary = _process_files(folder, files, image_size, read, lambda photo: np.copyto(next(rows), photo))
    pixels.flags.writeable = False
    return Photos(pixels[: len(names)], names, summary)


def sample_photos(
    folder: Path, image_size: int, count: int, *, seed: int, correct_black_level: bool = False
) -> NDArray[np.uint8]:
    """Return up to `count` usable photos, chosen by `seed`, uint8[N, S, S, 3]. Raises TrainingError without any."""
    files = _find_files(folder)
    shuffled = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    read = partial(crop_square, correct_black_level=correct_black_level)
    pixels: list[NDArray[np.uint8]] = []
    _process_files(folder, shuffled, image_size, read, pixels.append, max_photos=count)
    return np.stack(pixels)


def measure_photos(folder: Path, image_size: int) -> tuple[int, ...]:
    """Return the shorter side, in pixels, of every apparently usable file.

    It reads headers and detects copies but decodes nothing, so files with damaged pixels still count.
    Raises TrainingError if the folder is missing or no file is usable.
    """
    sides: list[int] = []
    _process_files(folder, _find_files(folder), image_size, lambda image, _: min(image.size), sides.append)
    return tuple(sides)


def _load_through_cache(
    folder: Path, files: list[_File], image_size: int, read: partial[NDArray[np.uint8]], cache_dir: Path
) -> Photos:
    stamps = [(file.name, file.stamp) for file in files]
    determined_by = [_CACHE_LAYOUT, PIL.__version__, load_heif(), image_size, read.keywords, str(folder.resolve())]
    key = hashlib.sha256(json.dumps([*determined_by, stamps]).encode()).hexdigest()[:32]
    # Hidden, so a cache inside the photo folder is ignored there.
    pixels, index = cache_dir / f".photos-{key}.u8", cache_dir / f".photos-{key}.json"
    shape = image_size, image_size, 3
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing, or truncated by a crash
        content = json.loads(index.read_text(encoding="utf-8"))
        names = tuple(content["files"])
        summary = PhotoSummary(**content["summary"] | {"folder": printable(str(folder))})
        return Photos(np.memmap(pixels, np.uint8, "r", shape=(len(names), *shape)), names, summary)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # Written, not mapped: on a full disk a write raises OSError, but a mapped page kills the process.
        with open_atomically(pixels) as out:
            names, summary = _process_files(folder, files, image_size, read, lambda photo: out.write(photo.data))
        if SkipReason.IO_ERROR not in summary.skipped:  # else the next call reads the files again
            write_record(index, {"files": names, "summary": dataclasses.asdict(summary)})
        return Photos(np.memmap(pixels, np.uint8, "r").reshape(-1, *shape), names, summary)
    except OSError as error:
        megabytes = len(files) * image_size * image_size * 3 / 1e6
        raise TrainingError(
            f"Cannot cache the decoded photos in {printable(str(cache_dir))!r} ({error.strerror or error}); "
            f"make {megabytes:,.0f} MB free there, or raise --memory-limit-mib."
        ) from error


def _find_files(folder: Path) -> list[_File]:
    """Return all visible files below `folder`, sorted by path, without opening them.

    Links are followed, once to each folder. A folder of a run, or one that cannot be listed, counts as a file.
    Raises TrainingError.
    """
    try:
        fault = None if stat.S_ISDIR(folder.stat().st_mode) else "is not a folder"
    except OSError as error:
        fault = f"cannot be opened ({error.strerror})"
    if fault:
        raise TrainingError(f"The photo folder {printable(str(folder))!r} {fault}; set --photos to a folder of photos.")
    visited: set[str] = set()
    files: list[_File] = []

    def add_unreadable_folder(error: OSError) -> None:
        files.append(_File(Path(error.filename), os.path.relpath(error.filename, folder), SkipReason.of(error)))

    for root, subfolders, names in os.walk(folder, onerror=add_unreadable_folder, followlinks=True):
        if (real := os.path.realpath(root)) in visited:
            subfolders.clear()
            continue
        visited.add(real)
        if {"config.json", "photos.json"} <= set(names):  # its grids are no photos
            files.append(_File(Path(root), os.path.relpath(root, folder), SkipReason.RUN))
            subfolders.clear()
            continue
        # In order, so the same one of two links is always followed.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths = [Path(root, name) for name in names if not name.startswith(".")]
        files += [_inspect(path, str(path.relative_to(folder))) for path in paths]
    jpegs = {Path(file.name.casefold()) for file in files if file.skip_reason is None}
    for index, file in enumerate(files):
        name = Path(file.name.casefold())
        is_original = RAW_SUFFIX.fullmatch(name.suffix) or name.suffix in (".heic", ".heif", ".hif")
        if is_original and any(name.with_suffix(suffix) in jpegs for suffix in (".jpg", ".jpeg")):
            files[index] = dataclasses.replace(file, skip_reason=SkipReason.PAIR)
    return sorted(files, key=lambda file: file.name)


def _inspect(path: Path, name: str) -> _File:
    """Return the file at `path` without opening it."""
    try:
        status = path.stat()
    except OSError as error:
        return _File(path, name, SkipReason.of(error))
    reason = None if status.st_size else SkipReason.EMPTY
    if not stat.S_ISREG(status.st_mode):
        reason = SkipReason.SPECIAL  # opening a FIFO would wait for a writer forever
    elif status.st_size > MAX_FILE_BYTES:
        reason = SkipReason.TOO_HEAVY
    return _File(path, name, reason, (os.access(path, os.R_OK), status.st_size, status.st_mtime_ns))


def _process_files(
    folder: Path,
    files: list[_File],
    image_size: int,
    read: Callable[[Image.Image, int], Result],
    store: Callable[[Result], object],
    max_photos: int | None = None,
) -> tuple[tuple[str, ...], PhotoSummary]:
    """Pass each photo's result of `read` to `store`; return names and counts. Raises TrainingError."""
    used: list[str] = []
    skipped: Counter[SkipReason] = Counter()
    fates: dict[str, str] = {}
    digests: set[bytes] = set()
    for file in tqdm(files, "reading photos", unit=" files", delay=PROGRESS_DELAY_S):
        result = file.skip_reason or read_photo(file.path, image_size, read, digests)
        name = printable(file.name)
        if isinstance(result, SkipReason):
            skipped[result] += 1
            fates[name] = result.value
        else:
            store(result)
            used.append(name)
            if len(used) == max_photos:
                break
    counts = {reason.value: skipped[reason] for reason in SkipReason if skipped[reason]}
    summary = PhotoSummary(printable(str(folder)), len(files), len(used), counts, fates)
    if not files:
        raise TrainingError(
            f"The photo folder {summary.folder!r} has no files (hidden files are ignored); "
            "set --photos to a folder of photos."
        )
    if not used:
        reason, count = max(counts.items(), key=lambda item: item[1])
        raise TrainingError(
            f"The photo folder {summary.folder!r} has no usable photo: {count:,} of {len(files):,} files are skipped "
            f"as {reason!r}{'' if ';' in reason else '; set --photos to another folder'}."
        )
    return tuple(used), summary


def printable(text: str) -> str:
    """Return `text` with undecodable bytes and control characters escaped."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text
    )
