"""The pixels of one photo: colours, orientation and crop."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from tests.photo_files import ORANGE, SIDE, encoded, load, png_that_claims, solid
from training.data.decoding import FORMATS, MAX_ENLARGEMENT
from training.data.photos import measure_photos


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


SRGB = ImageCms.createProfile("sRGB")
SWAPPED_PROFILE = ImageCms.ImageCmsProfile(SRGB).tobytes()
for old, new in ((b"rXYZ", b"----"), (b"gXYZ", b"rXYZ"), (b"----", b"gXYZ")):  # red and green change places
    SWAPPED_PROFILE = SWAPPED_PROFILE.replace(old, new, 1)
PLAIN = solid("RGB", ORANGE)
LAB_ORANGE = ImageCms.profileToProfile(PLAIN, SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
CMYK_ORANGE = solid("CMYK", (55, 155, 215, 0))
ADOBE_ORANGE, RED, SMALL = solid("RGB", (150, 100, 40)), solid("RGB", "red"), solid("RGB", "white", (16, 16))
SMALL_PALETTE = two_halves(ORANGE, "blue").quantize(2).crop((0, 0, SIDE // MAX_ENLARGEMENT, 8))
FRAMES = [solid("RGB", "white"), solid("RGB", "blue")]
GREY, WHITE = (120, 120, 120), (255, 255, 255)

# Cameras mark Adobe RGB by EXIF alone.
ADOBE_RGB = Image.Exif()
ADOBE_RGB[ExifTags.Base.Make] = "a camera"
ADOBE_RGB.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {ExifTags.Interop.InteropIndex: "R03"}

COLOURS = {
    **{kind: (encoded(PLAIN, kind, quality=100), ORANGE) for kind in FORMATS},
    "palette PNG with another colour transparent": (encoded(SMALL_PALETTE, "PNG", transparency=255), ORANGE),
    "CMYK JPEG, inverted by Adobe": (encoded(CMYK_ORANGE, "JPEG", quality=95), ORANGE),
    **{f"{image.mode} TIFF": (encoded(image, "TIFF"), ORANGE) for image in (CMYK_ORANGE, LAB_ORANGE)},
    "JPEG with a short APP14 segment": (jpeg_with_segment(0xEE, b"Adobe"), ORANGE),
    "JPEG with a short JFIF segment": (jpeg_with_segment(0xE0, b"JFIF\0"), ORANGE),
    "JPEG with a short colour profile": (jpeg_with_segment(0xE2, b"ICC_PROFILE\0"), ORANGE),
    "JPEG of 200 megapixels": (encoded(solid("L", 120, (16320, 12240)), "JPEG"), GREY),
    "TIFF whose second page is larger": (encoded(SMALL, "TIFF", save_all=True, append_images=[PLAIN]), ORANGE),
    "grey JPEG": (encoded(solid("L", 120), "JPEG"), GREY),
    "1-bit TIFF": (encoded(solid("1", 0), "TIFF"), (0, 0, 0)),
    **{f"16-bit {kind}": (encoded(solid("I;16", 120 * 257), kind), GREY) for kind in ("PNG", "TIFF")},
    "16-bit big-endian TIFF": (encoded(solid("I;16B", 120 * 257), "TIFF"), GREY),
    "16-bit TIFF where 0 is white": (grey_tiff(65535 - 120 * 257, bits=16, white_is_zero=True), GREY),
    "12-bit TIFF": (grey_tiff(120 * 16 + 7, bits=12), GREY),
    "16-bit PGM": (encoded(solid("I", 120 * 257), "PPM"), GREY),
    "32-bit TIFF": (encoded(solid("I", 120 * 257), "TIFF"), GREY),
    **{f"float TIFF up to {n}": (encoded(solid("F", 120 / 255 * n), "TIFF"), GREY) for n in (1, 255, 65535)},
    "transparent RGBA PNG": (encoded(solid("RGBA", (*ORANGE, 0)), "PNG"), WHITE),
    "transparent palette PNG": (encoded(solid("P", 0), "PNG", transparency=0), WHITE),
    "tRNS in a grey PNG": (encoded(solid("L", 7), "PNG", transparency=7), WHITE),
    "tRNS in a 16-bit PNG": (encoded(solid("I;16", 777), "PNG", transparency=777), WHITE),
    "broken EXIF": (encoded(PLAIN, "WEBP", exif=b"Exif\x00\x00MM\x00*\xff\xff"), ORANGE),
    "garbage as profile": (encoded(PLAIN, "TIFF", icc_profile=b"not a profile"), ORANGE),
    "truncated profile": (encoded(PLAIN, "TIFF", icc_profile=SWAPPED_PROFILE[:300]), ORANGE),
    "profile for another mode": (encoded(CMYK_ORANGE, "TIFF", icc_profile=SWAPPED_PROFILE), ORANGE),
    **{
        f"first frame of a {kind}": (encoded(PLAIN, kind, save_all=True, append_images=FRAMES, quality=100), ORANGE)
        for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO")  # phones write MPO
    },
    **{
        f"{kind} with a colour profile": (encoded(RED, kind, icc_profile=SWAPPED_PROFILE, quality=100), (0, 255, 0))
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    },
    **{
        f"{kind} in Adobe RGB": (encoded(ADOBE_ORANGE, kind, exif=ADOBE_RGB, quality=100), (167, 100, 29))
        for kind in ("JPEG", "PNG", "WEBP", "AVIF")
    },
}


@pytest.mark.parametrize(("content", "colour"), COLOURS.values(), ids=COLOURS)
def test_photo_has_the_colour_that_a_viewer_shows(folder, content, colour):
    (folder / "photo").write_bytes(content)
    pixels = load(folder).pixels
    assert (pixels.shape, pixels.dtype) == ((1, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(colour, pixels.shape), atol=4)


@pytest.mark.parametrize("halves", [(-7.0, 300_000.0), (float("nan"), 1.0)])
def test_floats_of_unknown_range_and_nan_become_black_to_white(folder, halves):
    two_halves(*halves, "F").save(folder / "a.tiff")
    pixels = load(folder).pixels
    assert (pixels[0, 0, 0, 0], pixels[0, 0, -1, 0]) == (0, 255)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(folder, image_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: the left side belongs on top
    (folder / "photo").write_bytes(encoded(two_halves("black", "white"), image_format, exif=exif))
    pixels = load(folder).pixels
    assert pixels[0, :8].mean() < 20
    assert pixels[0, -8:].mean() > 235


@pytest.mark.parametrize("size", [(3 * SIDE, SIDE), (SIDE, 3 * SIDE)], ids=["wide", "tall"])
def test_centre_square_is_kept(folder, size):
    image = solid("RGB", "white", size)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    image.paste((0, 0, 0), (left, top, left + SIDE, top + SIDE))
    image.save(folder / "a.png")
    assert (load(folder).pixels == 0).all()


@pytest.mark.parametrize("size", [(1200, 900), (901, 1201), (2 * SIDE, 2 * SIDE)], ids=["wide", "tall", "exact"])
def test_large_jpeg_equals_its_full_decode(folder, size):
    content = encoded(Image.radial_gradient("L").resize(size), "JPEG", quality=95)
    (folder / "a.jpg").write_bytes(content)
    Image.open(io.BytesIO(content)).save(folder / "b.png")  # decoded at full size
    jpeg, full = load(folder).pixels.astype(int)
    np.testing.assert_allclose(jpeg, full, atol=4)


def test_measure_photos_reads_sizes_without_decoding(folder):
    solid("RGB", ORANGE, (80, 50)).save(folder / "a.png")
    solid("RGB", GREY, (40, 60)).save(folder / "b.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "page.html").write_text("not a photo")
    solid("RGB", GREY, (5, 5)).save(folder / "tiny.png")
    (folder / "torn.png").write_bytes(png_that_claims(100, 70))
    assert measure_photos(folder, 32) == (50, 40, 70)


@pytest.mark.parametrize(
    ("left", "right", "corrected"),
    [
        ((60, 50, 55), (255, 255, 255), [(12, 0, 6), (255, 255, 255)]),  # a grey shadow: 60 is 10 / 205 above black
        ((200, 50, 90), (50, 170, 255), [(187, 0, 50), (0, 149, 255)]),  # grey in another channel of each pixel
        ((40, 40, 40), (255, 255, 255), [(0, 0, 0), (255, 255, 255)]),  # the lowest level to correct
        ((128, 128, 128), (255, 255, 255), [(0, 0, 0), (255, 255, 255)]),  # the highest
        ((200, 100, 39), (255, 255, 255), None),
        ((250, 240, 129), (255, 255, 255), None),
    ],
)
def test_black_level_is_corrected_when_shadows_are_grey(folder, left, right, corrected):
    two_halves(left, right).save(folder / "a.png")
    pixels = load(folder, correct_black_level=True).pixels[0, 0, [0, -1]]
    assert pixels.tolist() == [list(colour) for colour in corrected or (left, right)]
