"""Turn any folder of photos into one array of square RGB pictures, and account for every file in it."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tempfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from training.errors import PhotosError

# Told from content, never from the name. Left out on purpose: EPS and PDF run Ghostscript, TGA has no
# signature (any file could be one), and one wrong byte in a JPEG 2000 makes Pillow ask for terabytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")

MAX_PIXELS = 89_478_485  # Pillow's own limit: 341 MiB decoded, while a header of 33 bytes can claim any size

# A photo of MAX_PIXELS without compression, 16 bits a channel and transparent, is 683 MiB; a sparse file of terabytes
# would be read to its end for its digest.
MAX_FILE_BYTES = 2**30

# A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves so many times the pixels a side that are wanted, as Pillow's
# thumbnails are: a photo of 12 megapixels becomes 64 x 64 in a quarter of the time, and 256 x 256 in a third.
JPEG_LEEWAY = 2

MAX_ENLARGEMENT = 4  # beyond it 15 of 16 pixels are interpolated, and a GAN learns the blur as a feature

WHITE_IS_ZERO = 0  # PhotometricInterpretation of TIFF 6.0

PROGRESS_DELAY_S = 1.0  # small folders finish before a bar is worth drawing

_BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)

_Seen = TypeVar("_Seen")

_CACHE_LAYOUT = 4  # goes up whenever the same file would give other pixels or the cache other files


class Skip(StrEnum):
    """Why a file is not used, in the order in which reasons are reported."""

    BROKEN_LINK = "broken link"
    SPECIAL = "not a regular file"
    UNREADABLE = "cannot be read"
    EMPTY = "empty file"
    UNKNOWN = "not a picture of a known format"
    TOO_HEAVY = f"more than {MAX_FILE_BYTES >> 20:,} MiB"
    TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
    TOO_SMALL = f"would be enlarged more than {MAX_ENLARGEMENT} times"
    DAMAGED = "damaged picture"
    COPY = "copy of another file"


@dataclass(frozen=True)
class PhotoSummary:
    """What became of every file found: `files == used + sum(skipped.values())`."""

    folder: str
    files: int
    used: int
    skipped: dict[str, int]  # reason to count; only reasons that occurred, in the order of Skip

    def table(self) -> str:
        """Return the counts as aligned plain text, one line each, without a final newline."""
        rows = {"files found": self.files, "used": self.used, **self.skipped}
        label, number = max(map(len, rows)), len(f"{self.files:,}")
        lines = [f"  {name:<{label}}  {count:>{number},}" for name, count in rows.items()]
        return "\n".join([f"photos in {self.folder}", *lines])


@dataclass(frozen=True)
class Photos:
    """Square RGB pictures in the order of their paths; `pixels[i]` comes from `files[i]`."""

    pixels: NDArray[np.uint8]  # [n, size, size, 3], sRGB, read-only: an array or a memory map
    files: tuple[str, ...]  # relative to the folder; what can't be printed is written as \xNN
    summary: PhotoSummary

    @cached_property
    def sha256(self) -> str:
        """The digest of all pixels, in hexadecimal digits."""
        return hashlib.sha256(self.pixels.data).hexdigest()


@dataclass(frozen=True)
class _Found:
    path: Path
    name: str  # relative to the folder, as the file system spells it
    fault: Skip | None  # already known without opening the file
    stamp: tuple[int, ...] = ()  # changes when the file does: may be read, bytes, modification time in ns


def load_photos(
    folder: Path, image_size: int, *, cache_dir: Path, memory_limit_bytes: int, progress: bool = True
) -> Photos:
    """Return every usable photo in `folder` and below, centre-cropped and resized to `image_size`.

    Hidden files and folders are left alone; every other file is used or counted under one reason. Each
    photo is decoded once: into memory where as many pictures as there are files fit
    `memory_limit_bytes`, else into a file in `cache_dir` that the next call with an unchanged folder
    opens without decoding, at a peak memory that does not grow with the number of photos.

    Raises PhotosError if the folder is missing, holds no usable photo, or the cache can't be written.
    """
    files = _find_files(folder)
    most = sum(file.fault is None for file in files)
    if most * image_size * image_size * 3 > memory_limit_bytes:
        return _load_through_cache(folder, files, image_size, cache_dir, progress)
    pixels = np.empty((most, image_size, image_size, 3), np.uint8)
    rows = iter(pixels)
    names, summary = _decode(folder, files, image_size, lambda photo: np.copyto(next(rows), photo), progress)
    pixels.flags.writeable = False
    return Photos(pixels[: len(names)], names, summary)


def sample_photos(folder: Path, image_size: int, count: int, *, seed: int) -> NDArray[np.uint8]:
    """Return up to `count` usable photos of `folder`, chosen by `seed`, as `load_photos` would, decoding no more.

    uint8[n, image_size, image_size, 3], n >= 1. Raises PhotosError if the folder is missing or holds no usable photo.
    """
    files = _find_files(folder)
    shuffled = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    pixels: list[NDArray[np.uint8]] = []
    _decode(folder, shuffled, image_size, pixels.append, progress=False, at_most=count)
    return np.stack(pixels)


def measure_photos(folder: Path, image_size: int, *, progress: bool = True) -> tuple[int, ...]:
    """Return the shorter side, in pixels, of every file in `folder` and below that looks usable at `image_size`.

    It looks at headers and for copies but decodes nothing: what is damaged further inside still counts.

    Raises PhotosError if the folder is missing or no file looks usable.
    """
    sides: list[int] = []
    _account(folder, _find_files(folder), image_size, _shorter_side, sides.append, progress)
    return tuple(sides)


def _shorter_side(image: Image.Image) -> int:
    return min(image.size)


def _load_through_cache(folder: Path, files: list[_Found], image_size: int, cache_dir: Path, progress: bool) -> Photos:
    stamps = [(file.name, file.stamp) for file in files]
    determined_by = [_CACHE_LAYOUT, PIL.__version__, image_size, str(folder.resolve()), stamps]
    key = hashlib.sha256(json.dumps(determined_by).encode()).hexdigest()[:32]
    entry = cache_dir / f".photos-{key}"  # hidden: a cache inside the photos folder is no part of it
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing, or torn by a crash
        return _open_cache(entry, folder, image_size)
    try:
        shutil.rmtree(entry, ignore_errors=True)
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".photos-", dir=cache_dir) as aside:
            made = Path(aside) / "entry"
            made.mkdir()
            # Written, not mapped: on a full disk a write raises OSError, a mapped page kills the process.
            with (made / "pixels.u8").open("wb") as out:
                names, summary = _decode(folder, files, image_size, lambda photo: out.write(photo.tobytes()), progress)
            index = {"files": names, "summary": dataclasses.asdict(summary)}
            (made / "index.json").write_text(json.dumps(index), encoding="utf-8")
            try:
                made.rename(entry)
            except OSError:
                if not entry.is_dir():  # else another process was first, with the same pixels
                    raise
        return _open_cache(entry, folder, image_size)
    except OSError as error:
        shown, megabytes = _printable(str(cache_dir)), len(files) * image_size * image_size * 3 / 1e6
        raise PhotosError(
            f"The decoded photos can't be kept in the cache folder {shown!r} ({error.strerror or error}): "
            f"up to {megabytes:,.0f} MB are needed there, or a higher memory limit."
        ) from error


def _open_cache(entry: Path, folder: Path, image_size: int) -> Photos:
    """Return what `entry` holds, mapped read-only; raises if it is incomplete."""
    index = json.loads((entry / "index.json").read_text(encoding="utf-8"))
    names = tuple(index["files"])
    summary = PhotoSummary(**index["summary"] | {"folder": _printable(str(folder))})
    shape = (len(names), image_size, image_size, 3)
    return Photos(np.memmap(entry / "pixels.u8", np.uint8, mode="r", shape=shape), names, summary)


def _find_files(folder: Path) -> list[_Found]:
    """Return every file below `folder` that is not hidden, sorted by relative path; opens none of them.

    Links to folders are followed, each folder is visited once. One that can't be listed counts as a file.

    Raises PhotosError if `folder` itself can't be.
    """
    try:
        fault = None if stat.S_ISDIR(folder.stat().st_mode) else "is not a folder"
    except OSError as error:
        fault = f"can't be opened ({error.strerror})"
    if fault:
        raise PhotosError(f"The photos folder {_printable(str(folder))!r} {fault}; name one with pictures in it.")
    seen: set[Path] = set()
    found: list[_Found] = []
    folders = [folder]
    while folders:
        inside = folders.pop()
        real = inside.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            paths = sorted(path for path in inside.iterdir() if not path.name.startswith("."))
        except OSError:
            found.append(_Found(inside, str(inside.relative_to(folder)), Skip.UNREADABLE))
            continue
        below = []
        for path in paths:
            if file := _look_at(path, str(path.relative_to(folder))):
                found.append(file)
            else:
                below.append(path)
        folders += reversed(below)  # popped in order of name: which of two links wins is always the same
    return sorted(found, key=lambda file: file.name)


def _look_at(path: Path, name: str) -> _Found | None:
    """Return the file at `path` with the fault seen from outside, if any; None for a folder."""
    try:
        status = path.stat()
    except PermissionError:
        return _Found(path, name, Skip.UNREADABLE)
    except OSError:  # a link to nothing, or to itself
        return _Found(path, name, Skip.BROKEN_LINK)
    if stat.S_ISDIR(status.st_mode):
        return None
    fault = None
    if status.st_size == 0:
        fault = Skip.EMPTY
    elif status.st_size > MAX_FILE_BYTES:
        fault = Skip.TOO_HEAVY
    if not stat.S_ISREG(status.st_mode):
        fault = Skip.SPECIAL  # opening a FIFO would wait for a writer for ever
    return _Found(path, name, fault, (os.access(path, os.R_OK), status.st_size, status.st_mtime_ns))


def _decode(
    folder: Path,
    files: list[_Found],
    image_size: int,
    store: Callable[[NDArray[np.uint8]], object],
    progress: bool,
    at_most: int | None = None,
) -> tuple[tuple[str, ...], PhotoSummary]:
    """Hand the pixels of each usable photo to `store`, in order; else as `_account`."""

    def look(image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(_square(image, image_size))

    return _account(folder, files, image_size, look, store, progress, at_most)


def _account(
    folder: Path,
    files: list[_Found],
    image_size: int,
    look: Callable[[Image.Image], _Seen],
    store: Callable[[_Seen], object],
    progress: bool,
    at_most: int | None = None,
) -> tuple[tuple[str, ...], PhotoSummary]:
    """Hand what `look` sees in each usable photo to `store`, in order, and end with photo number `at_most`.

    Return their printable names and the account of all files. Raises PhotosError if there is none.
    """
    used: list[str] = []
    skipped: Counter[Skip] = Counter()
    digests: set[bytes] = set()
    for file in tqdm(files, "photos", unit=" files", disable=not progress, delay=PROGRESS_DELAY_S):
        seen = file.fault or _read_photo(file.path, image_size, look, digests)
        if isinstance(seen, Skip):
            skipped[seen] += 1
        else:
            store(seen)
            used.append(_printable(file.name))
            if len(used) == at_most:
                break
    counts = {reason.value: skipped[reason] for reason in Skip if skipped[reason]}
    summary = PhotoSummary(_printable(str(folder)), len(files), len(used), counts)
    if used:
        return tuple(used), summary
    if not files:
        raise PhotosError(f"The photos folder {summary.folder!r} holds no files (hidden ones don't count).")
    reason, count = max(counts.items(), key=lambda item: item[1])
    raise PhotosError(
        f"The photos folder {summary.folder!r} holds no usable photo: of {len(files):,} files found, "
        f"{count:,} fall under {reason!r}."
    )


def _read_photo(path: Path, image_size: int, look: Callable[[Image.Image], _Seen], digests: set[bytes]) -> _Seen | Skip:
    """Return what `look` sees in the opened photo, or why it can't be used at `image_size`.

    Adds the SHA-256 of a usable file to `digests`; a file whose digest is there already is a copy.
    """
    try:
        stream = _open_regular(path)
    except OSError:
        return Skip.UNREADABLE
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd metadata; both are judged here
        try:
            image = Image.open(stream, formats=FORMATS)  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                return Skip.TOO_LARGE
            if min(image.size) * MAX_ENLARGEMENT < image_size:
                return Skip.TOO_SMALL
            place = stream.tell()
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").digest()
            stream.seek(place)  # where Pillow will read on
            if digest in digests:
                return Skip.COPY
            seen = look(image)
        except MemoryError:
            raise  # says something about the machine, not about the file
        except UnidentifiedImageError:
            return Skip.UNKNOWN
        except Image.DecompressionBombError:
            return Skip.TOO_LARGE
        except Exception:  # Pillow's decoders raise a dozen types on damaged bytes, struct.error to KeyError
            return Skip.DAMAGED
    digests.add(digest)
    return seen


def _square(image: Image.Image, image_size: int) -> Image.Image:
    """Return the upright centre square as sRGB, on white where it was transparent."""
    image.draft(None, (JPEG_LEEWAY * image_size, JPEG_LEEWAY * image_size))  # of no effect on other formats
    image.load()
    profile = image.info.get("icc_profile")
    with contextlib.suppress(*_BROKEN_EXIF):  # a photo that may lie on its side beats no photo
        ImageOps.exif_transpose(image, in_place=True)
    image = _on_white(_in_eight_bits(image))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return _in_srgb(image, profile)  # after the resize: thousands of times fewer pixels to convert


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel; Pillow's own conversion clips 16 bits, everything turns white."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint16)
        if isinstance(clear := image.info.get("transparency"), int):
            wide[wide == clear] = 65535
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # of which Pillow leaves both as they lie in the file
            wide <<= 16 - image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
            if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
                wide = 65535 - wide
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float32), nan=0, posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        # Such files don't say what white is: the smallest usual one that holds all values, else the brightest.
        whites = [white for white in (1, 255, 65535) if low >= 0 and high <= white]
        black, white = (0.0, whites[0]) if whites else (low, high)
        scaled = (values - black) * (255 / max(white - black, 1e-9))
        return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        white.alpha_composite(clear)
        return white.convert("RGB")
    # Only these can be resized as they are, and mean something to a colour profile.
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        srgb = ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError):  # broken, or made for another mode: the pixels come close
            if converted := ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB"):
                return converted
    return image.convert("RGB")


def _open_regular(path: Path) -> io.BufferedReader:
    """Open a file; raise OSError for a FIFO that took its place meanwhile: it would be waited for, for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
    return os.fdopen(descriptor, "rb")


def _printable(path: str) -> str:
    """Return `path` fit for a terminal, a page and JSON.

    Spelled out are bytes that are not UTF-8, and what moves a cursor, recolours, or turns the direction of writing:
    whoever names a photo must not write on the screen.
    """
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        one if one.isprintable() or unicodedata.category(one) == "Zs" else one.encode("unicode_escape").decode()
        for one in text
    )
