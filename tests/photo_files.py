"""Good and bad photo files for the tests of training.data."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageCms

from training.data.photos import Photos, load_photos

SIDE = 32  # pixels; enough for JPEG's 16-pixel chroma blocks
ORANGE = (200, 100, 40)
GREY = (120, 120, 120)


def load(folder: Path, image_size: int = SIDE, *, in_memory: bool = True) -> Photos:
    limit_bytes = 2**40 if in_memory else 0
    return load_photos(folder, image_size, cache_dir=folder.parent / "cache", memory_limit_bytes=limit_bytes)


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


def grey_tiff(sample: int, *, bits: int, white_is_zero: bool = False) -> bytes:
    """Return a uniform grey TIFF of 12 or 16 `bits` a sample.

    Pillow writes neither 12 bits nor white as 0.
    """
    pair = (sample << 12 | sample).to_bytes(3, "big") if bits == 12 else 2 * sample.to_bytes(2, "little")
    pixels = pair * (SIDE * SIDE // 2)
    # Width, length, bits a sample, compression, photometric interpretation, strip, samples, rows, bytes.
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: SIDE}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {279: len(pixels)}).items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def two_halves(left: object, right: object, mode: str = "RGB") -> Image.Image:
    image = solid(mode, right)
    image.paste(left, (0, 0, SIDE // 2, SIDE))
    return image


def jpeg_with_segment(marker: int, content: bytes) -> bytes:
    """Return an orange JPEG that begins with an application segment."""
    jpeg = encoded(solid("RGB", ORANGE), "JPEG", quality=100)
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content + jpeg[2:]


def tiff_with_tags(**tags: int) -> bytes:
    """Return an orange TIFF with more tags, such as t254=1."""
    return encoded(solid("RGB", ORANGE), "TIFF", tiffinfo={int(name[1:]): value for name, value in tags.items()})


def lab(colour: tuple[int, int, int]) -> Image.Image:
    srgb, cielab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(solid("RGB", colour), srgb, cielab, outputMode="LAB")


def profile_with_red_and_green_swapped() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"----"), (b"gXYZ", b"rXYZ"), (b"----", b"gXYZ")):
        profile = profile.replace(old, new, 1)
    return profile
