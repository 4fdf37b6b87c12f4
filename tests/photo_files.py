"""Good and bad photo files for the tests of training.data."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from training.data.photos import Photos, load_photos

SIDE = 32  # pixels; enough for JPEG's 16-pixel chroma blocks
ORANGE = (200, 100, 40)


def load(folder: Path, image_size: int = SIDE, *, in_memory: bool = True, **options: bool) -> Photos:
    limit_bytes = 2**40 if in_memory else 0
    cache_dir = folder.parent / "cache"
    return load_photos(folder, image_size, cache_dir=cache_dir, memory_limit_bytes=limit_bytes, **options)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def solid(mode: str, colour: object, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new(mode, size, colour)


def save_photo(path: Path, shade: int = 90) -> None:
    """Write a good photo; each shade gives another file."""
    solid("RGB", (shade, 100, 40)).save(path, "PNG")


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG without pixels that claims `width` and `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def tiff_with_tags(**tags: int) -> bytes:
    """Return an orange TIFF with more tags, such as t254=1."""
    return encoded(solid("RGB", ORANGE), "TIFF", tiffinfo={int(name[1:]): value for name, value in tags.items()})
