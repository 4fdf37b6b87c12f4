"""Photos as files, good and bad, for the tests of training.photos."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageCms

from training.photos import Photos, load_photos

SIDE = 32  # of the pictures made here: enough for JPEG's 16-pixel chroma blocks
ORANGE = (200, 100, 40)
GREY = (120, 120, 120)
ANY_AMOUNT = 2**40


def load(folder: Path, image_size: int = SIDE, *, in_memory: bool = True, cache_dir: Path | None = None) -> Photos:
    return load_photos(
        folder,
        image_size,
        cache_dir=cache_dir or folder.parent / "cache",
        memory_limit_bytes=ANY_AMOUNT if in_memory else 0,
        progress=False,
    )


def encoded(image: Image.Image, picture_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, picture_format, **options)
    return out.getvalue()


def solid(mode: str, colour: object, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new(mode, size, colour)


def save_photo(path: Path, shade: int = 90) -> None:
    """Write a picture that is fine, and differs from those of other shades."""
    solid("RGB", (shade, 100, 40)).save(path, "PNG")


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims a size: no pixel of it can be decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def two_halves(left: object, right: object, mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    image = solid(mode, right, size)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def lab(colour: tuple[int, int, int]) -> Image.Image:
    srgb, cielab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(solid("RGB", colour), srgb, cielab, outputMode="LAB")


def profile_with_red_and_green_swapped() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"----"), (b"gXYZ", b"rXYZ"), (b"----", b"gXYZ")):
        profile = profile.replace(old, new, 1)
    return profile
