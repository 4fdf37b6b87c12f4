"""One photo file as a square RGB image, or a skip reason."""

import contextlib
import errno
import hashlib
import io
import re
import struct
import warnings
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

# Detected from content, never from the name. Excluded: EPS and PDF run Ghostscript, TGA has no signature (any file
# could be one), and one wrong byte in a JPEG 2000 makes Pillow allocate terabytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
HEIC_HEADER = re.compile(rb".{4}ftyp(?:.{4})*?(?:heic|heix|heim|heis|hevc|hevx)", re.DOTALL)

# Most kinds of camera raw are TIFF files whose first page is a thumbnail.
RAW_SUFFIX = re.compile(
    r"\.(3fr|arw|cr[23w]|dcr|dng|erf|fff|gpr|iiq|kdc|mef|mos|mrw|n[er][fw]|orf|pef|ra[fw]|rw[2l]|sr[2fw]|x3f)",
    re.IGNORECASE,
)
RAW_HEADER = re.compile(rb"(?s)II\*\0.{4}CR|FUJIFILMCCD-RAW|FOVb|\0MRM|IIU\0|IIR[OS]|MMOR|.{4}ftypcrx |.{6}HEAPCCDR")
DNG_VERSION, SUB_IFDS, NEW_SUBFILE_TYPE, THUMBNAIL = 50706, 330, 254, 1  # tags of TIFF and DNG, and a value
HEADER_BYTES = 64

# Pillow refuses a JPEG with an APP0, APP2 or APP14 segment that is too short for its fields. Decoders ignore it.
SHORT_SEGMENT = re.compile(rb"\xff[\xe0\xee]\0[\x02-\x08]|\xff\xe2\0[\x02-\x0f]")
COMMENT = b"\xff\xfe"

MAX_PIXELS = 89_478_485  # Pillow's own limit: 341 MiB decoded; a header of 33 bytes can claim any size
MAX_JPEG_PIXELS = 2**28  # of phones with 108 or 200 megapixels; decoded at an eighth, they need less than 40 MiB
MAX_PAGES = 1000  # of a TIFF; a page takes 6 bytes, so a damaged file may have millions

# An uncompressed photo of MAX_PIXELS with 16 bits a channel and transparency has 683 MiB. Without a limit, the digest
# would read a sparse file of terabytes to its end.
MAX_FILE_BYTES = 2**30

# A JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves this many times the wanted pixels a side, as in Pillow's
# thumbnails: 12 megapixels become 64 x 64 in a quarter of the time, 256 x 256 in a third.
JPEG_OVERSAMPLING = 2

MAX_ENLARGEMENT = 4  # beyond it 15 of 16 pixels are interpolated, and a GAN learns the blur

# The black level of a photo is the PERCENTILE of the smallest of R, G and B per pixel: the dark channel of He et al.
# 2009, which is near 0 without a veil. Of 7,180 photos of apples, 494 of one variety have 49 to 51, the others at most
# 35. A photo with a higher level shows a pale object.
BLACK_LEVEL_PERCENTILE, LOWEST_BLACK_LEVEL, HIGHEST_BLACK_LEVEL = 1, 40, 128

WHITE_IS_ZERO = 0  # PhotometricInterpretation of TIFF 6.0

# Adobe RGB (1998): its gamma, and the matrix to linear sRGB. Both have the white D65 and differ in green alone.
ADOBE_GAMMA = 563 / 256
ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])

_BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)

Result = TypeVar("Result")


class SkipReason(StrEnum):
    """Why a file is not used, in the order of reports."""

    RUN = "folder of a training run, not searched"
    BROKEN_LINK = "broken link"
    IO_ERROR = "I/O error; check the disk or network and run the command again"
    SPECIAL = "not a regular file"
    UNREADABLE = "cannot be read"
    EMPTY = "empty file"
    PAIR = "camera raw or HEIC beside its JPEG"
    RAW = "camera raw; export it as JPEG"
    HEIC = "HEIC; run `.venv/bin/python -m pip install pillow-heif` to read it"
    UNKNOWN = "not an image of a known format"
    TOO_HEAVY = f"more than {MAX_FILE_BYTES >> 20:,} MiB"
    TOO_LARGE = f"more than {MAX_PIXELS:,} pixels, or {MAX_JPEG_PIXELS:,} in a JPEG"
    TOO_SMALL = f"would be enlarged more than {MAX_ENLARGEMENT} times; use larger photos or a smaller --size"
    DAMAGED = "damaged image"
    COPY = "copy of another file"

    @classmethod
    def of(cls, error: OSError) -> "SkipReason":
        """Return the skip reason for an error of the file system."""
        if isinstance(error, PermissionError):
            return cls.UNREADABLE
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return cls.BROKEN_LINK
        return cls.IO_ERROR


@cache
def load_heif() -> str | None:
    """Return the version of pillow-heif after registering it; None without it."""
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    return str(pillow_heif.__version__)


def read_photo(
    path: Path, image_size: int, read: Callable[[Image.Image, int], Result], digests: set[bytes]
) -> Result | SkipReason:
    """Return the result of `read`, or a skip reason. Adds the SHA-256 to `digests`, which identify copies."""
    try:
        stream = path.open("rb")
    except OSError as error:
        return SkipReason.of(error)
    Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS  # Pillow raises beyond twice as many
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd metadata; the code below checks both
        try:
            image = _open_image(stream, path.suffix)
            if isinstance(image, SkipReason):
                return image
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
            return SkipReason.RAW if RAW_SUFFIX.fullmatch(path.suffix) else SkipReason.UNKNOWN
        except Image.DecompressionBombError:
            return SkipReason.TOO_LARGE
        except OSError as error:  # Pillow's own have no number, or that of a seek to a wrong offset
            return SkipReason.DAMAGED if error.errno in (None, errno.EINVAL) else SkipReason.of(error)
        except Exception:  # Pillow's decoders raise a dozen types on damaged bytes, struct.error to KeyError
            return SkipReason.DAMAGED
    digests.add(digest)
    return result


def _open_image(stream: BinaryIO, suffix: str) -> Image.Image | SkipReason:
    """Return an image without its pixels, or a skip reason. Raises UnidentifiedImageError."""
    header = stream.read(HEADER_BYTES)
    if RAW_HEADER.match(header):
        return SkipReason.RAW
    heif = load_heif()
    if heif is None and HEIC_HEADER.match(header):
        return SkipReason.HEIC
    formats = FORMATS if heif is None else (*FORMATS, "HEIF")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        if not header.startswith(b"\xff\xd8"):
            raise
        stream.seek(0)
        content = SHORT_SEGMENT.sub(lambda match: COMMENT + match[0][2:], stream.read())
        image = Image.open(io.BytesIO(content), formats=formats)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        has_thumbnail = SUB_IFDS in tags and tags.get(NEW_SUBFILE_TYPE) == THUMBNAIL
        if RAW_SUFFIX.fullmatch(suffix) or DNG_VERSION in tags or has_thumbnail:
            return SkipReason.RAW
        _seek_largest_page(image)
    max_pixels = MAX_JPEG_PIXELS if image.format in ("JPEG", "MPO") else MAX_PIXELS
    if image.info.get("progressive"):
        max_pixels //= 2  # libjpeg needs all coefficients: up to 6 bytes a pixel at any fraction
    return SkipReason.TOO_LARGE if image.width * image.height > max_pixels else image


def _seek_largest_page(image: TiffImagePlugin.TiffImageFile) -> None:
    """Go to the first of the pages with the most pixels."""
    sizes = []
    with contextlib.suppress(EOFError, *_BROKEN_EXIF):
        for page in range(MAX_PAGES):
            image.seek(page)
            sizes.append(image.width * image.height)
    image.seek(sizes.index(max(sizes)))


def crop_square(image: Image.Image, image_size: int, *, correct_black_level: bool = False) -> NDArray[np.uint8]:
    """Return the upright centre square as uint8[S, S, 3] in sRGB. Transparent pixels become white."""
    image.draft(None, (JPEG_OVERSAMPLING * image_size, JPEG_OVERSAMPLING * image_size))  # affects JPEG only
    image.load()
    profile, is_adobe_rgb = image.info.get("icc_profile"), False
    with contextlib.suppress(*_BROKEN_EXIF):
        exif = image.getexif()
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)  # DCF 2.0
        is_adobe_rgb = index in ("R03", b"R03\0") or exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) == 2
    with contextlib.suppress(*_BROKEN_EXIF):  # a photo that may lie on its side is better than no photo
        ImageOps.exif_transpose(image, in_place=True)
    image = _composite_on_white(_to_eight_bits(image))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    # After the resize: thousands of times fewer pixels to convert.
    photo = _to_srgb(image, profile, is_adobe_rgb=is_adobe_rgb)
    if not (correct_black_level and has_grey_shadows(photo)):
        return photo
    level = black_level(photo)
    return np.asarray(np.rint((photo - level) * (255 / (255 - level))).clip(0, 255), np.uint8)


def black_level(photo: NDArray[np.uint8]) -> float:
    """Return the black level, 0 to 255, of a photo uint8[S, S, 3]."""
    return float(np.percentile(photo.min(axis=-1), BLACK_LEVEL_PERCENTILE))


def has_grey_shadows(photo: NDArray[np.uint8]) -> bool:
    """Return whether the black level of a photo uint8[S, S, 3] needs correction."""
    return LOWEST_BLACK_LEVEL <= black_level(photo) <= HIGHEST_BLACK_LEVEL


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel. Pillow's own conversion clips 16 bits, which turns everything white."""
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
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    # Only these modes can be resized directly, and fit a colour profile.
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None, *, is_adobe_rgb: bool) -> NDArray[np.uint8]:
    if profile:
        srgb = ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError):  # broken, or for another mode: the pixels are close enough
            if converted := ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB"):
                return np.asarray(converted)
    elif is_adobe_rgb and image.mode == "RGB":
        linear = (((np.asarray(image) / 255.0) ** ADOBE_GAMMA) @ ADOBE_TO_SRGB.T).clip(0.0, 1.0)
        encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return np.asarray(np.rint(255.0 * encoded), np.uint8)
    return np.asarray(image.convert("RGB"))
