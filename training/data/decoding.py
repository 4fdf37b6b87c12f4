"""One photo file as a square RGB image, or a skip reason."""

import contextlib
import hashlib
import io
import struct
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Detected from content, never from the name. Excluded: EPS and PDF run Ghostscript, TGA has no signature (any file
# could be one), and one wrong byte in a JPEG 2000 makes Pillow allocate terabytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")

MAX_PIXELS = 89_478_485  # Pillow's own limit: 341 MiB decoded; a header of 33 bytes can claim any size

# An uncompressed photo of MAX_PIXELS with 16 bits a channel and transparency has 683 MiB. Without a limit, the digest
# would read a sparse file of terabytes to its end.
MAX_FILE_BYTES = 2**30

# A JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves this many times the wanted pixels a side, as in Pillow's
# thumbnails: 12 megapixels become 64 x 64 in a quarter of the time, 256 x 256 in a third.
JPEG_OVERSAMPLING = 2

MAX_ENLARGEMENT = 4  # beyond it 15 of 16 pixels are interpolated, and a GAN learns the blur

WHITE_IS_ZERO = 0  # PhotometricInterpretation of TIFF 6.0

_BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)

Result = TypeVar("Result")


class SkipReason(StrEnum):
    """Why a file is not used, in the order of reports."""

    BROKEN_LINK = "broken link"
    SPECIAL = "not a regular file"
    UNREADABLE = "cannot be read"
    EMPTY = "empty file"
    UNKNOWN = "not an image of a known format"
    TOO_HEAVY = f"more than {MAX_FILE_BYTES >> 20:,} MiB"
    TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
    TOO_SMALL = f"would be enlarged more than {MAX_ENLARGEMENT} times"
    DAMAGED = "damaged image"
    COPY = "copy of another file"


def read_photo(
    path: Path, image_size: int, read: Callable[[Image.Image, int], Result], digests: set[bytes]
) -> Result | SkipReason:
    """Return the result of `read` for the photo, or a skip reason.

    Adds the SHA-256 of a usable file to `digests`. A file with a digest from `digests` is a copy.
    """
    try:
        stream = path.open("rb")
    except OSError:
        return SkipReason.UNREADABLE
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd metadata; the code below checks both
        try:
            image = Image.open(stream, formats=FORMATS)  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                return SkipReason.TOO_LARGE
            if min(image.size) * MAX_ENLARGEMENT < image_size:
                return SkipReason.TOO_SMALL
            position = stream.tell()
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").digest()
            stream.seek(position)  # Pillow continues to read here
            if digest in digests:
                return SkipReason.COPY
            result = read(image, image_size)
        except MemoryError:
            raise  # a fault of the machine, not of the file
        except UnidentifiedImageError:
            return SkipReason.UNKNOWN
        except Image.DecompressionBombError:
            return SkipReason.TOO_LARGE
        except Exception:  # Pillow's decoders raise a dozen types on damaged bytes, struct.error to KeyError
            return SkipReason.DAMAGED
    digests.add(digest)
    return result


def crop_square(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """Return the upright centre square as uint8[S, S, 3] in sRGB.

    Transparent pixels become white.
    """
    image.draft(None, (JPEG_OVERSAMPLING * image_size, JPEG_OVERSAMPLING * image_size))  # affects JPEG only
    image.load()
    profile = image.info.get("icc_profile")
    with contextlib.suppress(*_BROKEN_EXIF):  # a photo that may lie on its side is better than no photo
        ImageOps.exif_transpose(image, in_place=True)
    image = _composite_on_white(_to_eight_bits(image))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.asarray(_to_srgb(image, profile))  # after the resize: thousands of times fewer pixels to convert


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel.

    Pillow's own conversion clips 16 bits, which turns everything white.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((_sixteen_bit_values(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float32), nan=0, posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        # Such files do not define white: take the smallest usual value that covers all pixels, else the brightest.
        usual_whites = [white for white in (1, 255, 65535) if low >= 0 and high <= white]
        black, white = (0.0, usual_whites[0]) if usual_whites else (low, high)
        scaled = (values - black) * (255 / max(white - black, 1e-9))
        return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
    return image


def _sixteen_bit_values(image: Image.Image) -> NDArray[np.uint16]:
    """Return the pixels scaled to 0..65535, with white for transparent pixels."""
    values = np.asarray(image).astype(np.uint16)
    if isinstance(transparent := image.info.get("transparency"), int):
        values[values == transparent] = 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow applies neither bit depth nor interpretation
        values <<= 16 - image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            values = 65535 - values
    return values


def _composite_on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        white.alpha_composite(transparent)
        return white.convert("RGB")
    # Only these modes can be resized directly, and fit a colour profile.
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        srgb = ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError):  # broken, or for another mode: the pixels are close enough
            if converted := ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB"):
                return converted
    return image.convert("RGB")
