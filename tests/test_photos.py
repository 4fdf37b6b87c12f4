import dataclasses
import io
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from training.photos import MAX_ENLARGEMENT, MAX_PIXELS, Photos, PhotosError, Skip, load_photos

SIDE = 32  # of the pictures made here: enough for JPEG's 16-pixel chroma blocks
ORANGE = (200, 100, 40)
GREY = (120, 120, 120)
ANY_AMOUNT = 2**40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "photos"
    made.mkdir()
    return made


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


COLOURS = {
    "RGB JPEG": (encoded(solid("RGB", ORANGE), "JPEG", quality=95), ORANGE),
    "RGB PNG": (encoded(solid("RGB", ORANGE), "PNG"), ORANGE),
    "RGB WebP": (encoded(solid("RGB", ORANGE), "WEBP", lossless=True), ORANGE),
    "RGB BMP": (encoded(solid("RGB", ORANGE), "BMP"), ORANGE),
    "RGB TIFF": (encoded(solid("RGB", ORANGE), "TIFF"), ORANGE),
    "RGB AVIF": (encoded(solid("RGB", ORANGE), "AVIF", quality=95), ORANGE),
    "RGB PPM": (encoded(solid("RGB", ORANGE), "PPM"), ORANGE),
    "RGBA PNG": (encoded(solid("RGBA", (*ORANGE, 255)), "PNG"), ORANGE),
    "palette PNG": (encoded(solid("RGB", ORANGE).quantize(4), "PNG"), ORANGE),
    "palette PNG with another colour transparent": (
        encoded(two_halves(ORANGE, "blue").quantize(2).crop((0, 0, 8, 8)), "PNG", transparency=255),
        ORANGE,
    ),
    "palette GIF": (encoded(solid("RGB", ORANGE).quantize(4), "GIF"), ORANGE),
    "PA TIFF": (encoded(solid("RGB", ORANGE).quantize(4).convert("PA"), "TIFF"), ORANGE),
    "CMYK JPEG, inverted by Adobe": (encoded(solid("CMYK", (55, 155, 215, 0)), "JPEG", quality=95), ORANGE),
    "CMYK TIFF": (encoded(solid("CMYK", (55, 155, 215, 0)), "TIFF"), ORANGE),
    "YCbCr TIFF": (encoded(solid("RGB", ORANGE).convert("YCbCr"), "TIFF"), ORANGE),
    "LAB TIFF": (encoded(lab(ORANGE), "TIFF"), ORANGE),
    "grey JPEG": (encoded(solid("L", 120), "JPEG"), GREY),
    "LA PNG": (encoded(solid("LA", (120, 255)), "PNG"), GREY),
    "1-bit PNG": (encoded(solid("1", 1), "PNG"), (255, 255, 255)),
    "1-bit TIFF": (encoded(solid("1", 0), "TIFF"), (0, 0, 0)),
    "16-bit PNG": (encoded(solid("I;16", 120 * 257), "PNG"), GREY),
    "16-bit TIFF": (encoded(solid("I;16", 120 * 257), "TIFF"), GREY),
    "16-bit big-endian TIFF": (encoded(solid("I;16B", 120 * 257), "TIFF"), GREY),
    "16-bit PGM": (encoded(solid("I", 120 * 257), "PPM"), GREY),
    "32-bit TIFF": (encoded(solid("I", 120 * 257), "TIFF"), GREY),
    "float TIFF up to 1": (encoded(solid("F", 120 / 255), "TIFF"), GREY),
    "float TIFF up to 255": (encoded(solid("F", 120.0), "TIFF"), GREY),
    "float TIFF up to 65535": (encoded(solid("F", 120 * 257.0), "TIFF"), GREY),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_colour_survives_every_mode(folder: Path, kind: str) -> None:
    content, colour = COLOURS[kind]
    (folder / "photo").write_bytes(content)
    pixels = load(folder).pixels
    assert pixels.shape == (1, SIDE, SIDE, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(colour, pixels.shape), atol=4)


def test_sixteen_bit_is_scaled_not_clipped(folder: Path) -> None:
    ramp = np.linspace(0, 65535, SIDE).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (SIDE, 1))).save(folder / "ramp.png")
    row = load(folder).pixels[0, 0, :, 0].astype(int)
    np.testing.assert_allclose(row, np.linspace(0, 255, SIDE), atol=2)


def test_floats_of_unknown_range_fill_black_to_white(folder: Path) -> None:
    two_halves(-7.0, 300_000.0, "F").save(folder / "a.tiff")
    pixels = load(folder).pixels
    assert (pixels[0, 0, 0, 0], pixels[0, 0, -1, 0]) == (0, 255)


def test_not_a_number_is_black(folder: Path) -> None:
    two_halves(float("nan"), 1.0, "F").save(folder / "a.tiff")
    pixels = load(folder).pixels
    assert (pixels[0, 0, 0, 0], pixels[0, 0, -1, 0]) == (0, 255)


TRANSPARENT = {
    "RGBA PNG": encoded(solid("RGBA", (*ORANGE, 0)), "PNG"),
    "RGBA WebP": encoded(solid("RGBA", (*ORANGE, 0)), "WEBP", lossless=True),
    "RGBA TIFF": encoded(solid("RGBA", (*ORANGE, 0)), "TIFF"),
    "LA PNG": encoded(solid("LA", (0, 0)), "PNG"),
    "palette PNG": encoded(solid("P", 0), "PNG", transparency=0),
    "palette PNG with an alpha per colour": encoded(solid("P", 0), "PNG", transparency=b"\x00\xff"),
    "GIF": encoded(solid("P", 0), "GIF", transparency=0),
    "tRNS in an RGB PNG": encoded(solid("RGB", ORANGE), "PNG", transparency=ORANGE),
    "tRNS in a grey PNG": encoded(solid("L", 7), "PNG", transparency=7),
    "tRNS in a 1-bit PNG": encoded(solid("1", 0), "PNG", transparency=0),
    "tRNS in a 16-bit PNG": encoded(solid("I;16", 777), "PNG", transparency=777),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_becomes_white(folder: Path, kind: str) -> None:
    (folder / "photo").write_bytes(TRANSPARENT[kind])
    assert (load(folder).pixels == 255).all()


def test_half_transparency_is_mixed_with_white(folder: Path) -> None:
    solid("RGBA", (0, 0, 0, 128)).save(folder / "a.png")
    assert (load(folder).pixels == 127).all()


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(folder: Path, picture_format: str) -> None:
    lying = two_halves("black", "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left belongs on top
    (folder / "photo").write_bytes(encoded(lying, picture_format, exif=exif))
    pixels = load(folder).pixels
    assert pixels[0, :8].mean() < 20
    assert pixels[0, -8:].mean() > 235


def test_a_broken_exif_block_does_not_lose_the_photo(folder: Path) -> None:
    (folder / "a.webp").write_bytes(encoded(solid("RGB", ORANGE), "WEBP", exif=b"Exif\x00\x00MM\x00*\xff\xff"))
    assert load(folder).summary.used == 1


def profile_with_red_and_green_swapped() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"----"), (b"gXYZ", b"rXYZ"), (b"----", b"gXYZ")):
        profile = profile.replace(old, new, 1)
    return profile


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_embedded_colour_profile_is_converted_to_srgb(folder: Path, picture_format: str) -> None:
    content = encoded(solid("RGB", "red"), picture_format, icc_profile=profile_with_red_and_green_swapped())
    (folder / "photo").write_bytes(content)
    red, green, blue = load(folder).pixels[0, 0, 0]
    assert green > 240
    assert max(red, blue) < 25


@pytest.mark.parametrize(
    ("mode", "colour", "profile"),
    [
        ("RGB", ORANGE, b"no profile at all"),
        ("RGB", ORANGE, profile_with_red_and_green_swapped()[:300]),
        ("CMYK", (55, 155, 215, 0), profile_with_red_and_green_swapped()),
    ],
    ids=["garbage", "truncated", "made for another mode"],
)
def test_a_useless_colour_profile_leaves_the_pixels(folder: Path, mode: str, colour: object, profile: bytes) -> None:
    (folder / "photo").write_bytes(encoded(solid(mode, colour), "TIFF", icc_profile=profile))
    np.testing.assert_allclose(load(folder).pixels[0, 0, 0], ORANGE, atol=2)


@pytest.mark.parametrize("picture_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_used(folder: Path, picture_format: str) -> None:
    rest = [solid("RGB", "white"), solid("RGB", "blue")]
    lossless = {"lossless": True} if picture_format == "WEBP" else {}
    content = encoded(solid("RGB", ORANGE), picture_format, save_all=True, append_images=rest, **lossless)
    (folder / "photo").write_bytes(content)
    np.testing.assert_allclose(load(folder).pixels[0, 0, 0], ORANGE, atol=2)


def test_a_phone_jpeg_of_several_pictures_is_used(folder: Path) -> None:
    content = encoded(solid("RGB", ORANGE), "MPO", save_all=True, append_images=[solid("RGB", "blue")])
    (folder / "photo.jpg").write_bytes(content)
    np.testing.assert_allclose(load(folder).pixels[0, 0, 0], ORANGE, atol=4)


@pytest.mark.parametrize("size", [(3 * SIDE, SIDE), (SIDE, 3 * SIDE)], ids=["wide", "tall"])
def test_the_centre_square_is_kept(folder: Path, size: tuple[int, int]) -> None:
    image = solid("RGB", "white", size)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    image.paste((0, 0, 0), (left, top, left + SIDE, top + SIDE))
    image.save(folder / "a.png")
    assert (load(folder).pixels == 0).all()


def test_shrinking_averages_instead_of_picking(folder: Path) -> None:
    board = (np.indices((7 * SIDE, 7 * SIDE)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(folder / "board.png")
    np.testing.assert_allclose(load(folder).pixels.astype(int), 127, atol=5)


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{short}/s")  # a socket's path holds 108 bytes at most, tmp_path may be longer
        Path(short, "s").rename(path)


def content(content: bytes):
    return lambda path: path.write_bytes(content)


PHOTO_PNG = encoded(Image.effect_noise((SIDE, SIDE), 90), "PNG")
PHOTO_JPEG = encoded(Image.effect_noise((SIDE, SIDE), 90), "JPEG")

BAD_FILES = {
    "broken link": (make_broken_link, Skip.BROKEN_LINK),
    "link to itself": (make_link_to_itself, Skip.BROKEN_LINK),
    "fifo": (os.mkfifo, Skip.SPECIAL),
    "socket": (make_socket, Skip.SPECIAL),
    "device": (make_link_to_device, Skip.SPECIAL),
    "empty": (content(b""), Skip.EMPTY),
    "text": (content("りんごの写真".encode()), Skip.UNKNOWN),
    "html": (content(b"<html>404 Not Found</html>"), Skip.UNKNOWN),
    "svg": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), Skip.UNKNOWN),
    "postscript": (content(encoded(solid("RGB", ORANGE), "EPS")), Skip.UNKNOWN),
    "pdf": (content(encoded(solid("RGB", ORANGE), "PDF")), Skip.UNKNOWN),
    "icon": (content(encoded(solid("RGB", ORANGE), "ICO")), Skip.UNKNOWN),
    "signature alone": (content(b"\xff\xd8\xff"), Skip.UNKNOWN),
    "more pixels than Pillow warns at": (content(png_that_claims(MAX_PIXELS // 9000 + 1, 9000)), Skip.TOO_LARGE),
    "more pixels than Pillow raises at": (content(png_that_claims(100_000, 100_000)), Skip.TOO_LARGE),
    "thumbnail": (content(encoded(solid("RGB", ORANGE, (7, 40)), "PNG")), Skip.TOO_SMALL),
    "half a png": (content(PHOTO_PNG[: len(PHOTO_PNG) // 2]), Skip.DAMAGED),
    "half a jpeg": (content(PHOTO_JPEG[: len(PHOTO_JPEG) // 2]), Skip.DAMAGED),
    "png without pixels": (content(png_that_claims(SIDE, SIDE)), Skip.DAMAGED),
    "copy": (lambda path: save_photo(path, shade=90), Skip.COPY),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_skipped_for_its_reason(folder: Path, kind: str) -> None:
    make, reason = BAD_FILES[kind]
    save_photo(folder / "a good photo", shade=90)
    make(folder / "photo.jpg")
    photos = load(folder)
    assert photos.files == ("a good photo",)
    assert photos.summary.skipped == {reason.value: 1}


needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")


@needs_permissions
def test_a_file_without_read_permission_is_skipped(folder: Path) -> None:
    save_photo(folder / "a")
    save_photo(folder / "b", shade=91)
    (folder / "b").chmod(0)
    assert load(folder).summary.skipped == {Skip.UNREADABLE.value: 1}


@needs_permissions
@pytest.mark.parametrize("mode", [0o000, 0o400], ids=["not even listed", "listed only"])
def test_a_folder_without_permission_counts_as_unreadable(folder: Path, mode: int) -> None:
    save_photo(folder / "a")
    (folder / "locked").mkdir()
    save_photo(folder / "locked" / "b", shade=91)
    (folder / "locked").chmod(mode)
    skipped = load(folder).summary.skipped
    (folder / "locked").chmod(0o700)
    assert skipped == {Skip.UNREADABLE.value: 1}


@needs_permissions
def test_a_photos_folder_out_of_reach_is_one_sentence(folder: Path) -> None:
    folder.parent.chmod(0)
    with pytest.raises(PhotosError, match=r"can't be opened \(Permission denied\)"):
        load(folder, cache_dir=folder)
    folder.parent.chmod(0o700)


@pytest.fixture
def zoo(folder: Path) -> Path:
    """Return a folder with one bad file of each kind, and two photos of which one lies in a folder."""
    save_photo(folder / "a good photo", shade=90)
    (folder / "sub").mkdir()
    save_photo(folder / "sub" / "photo", shade=91)
    for kind, (make, _) in BAD_FILES.items():
        make(folder / kind)
    return folder


def test_every_file_is_accounted_for(zoo: Path) -> None:
    summary = load(zoo).summary
    assert summary.used == 2
    assert summary.files == len(BAD_FILES) + 2 == summary.used + sum(summary.skipped.values())


def test_reasons_come_in_one_order(zoo: Path) -> None:
    reasons = list(load(zoo).summary.skipped)
    assert reasons == [reason.value for reason in Skip if reason.value in reasons]


def test_the_summary_becomes_json(zoo: Path) -> None:
    summary = load(zoo).summary
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["skipped"] == summary.skipped


def test_the_table_names_every_count(folder: Path) -> None:
    save_photo(folder / "a")
    save_photo(folder / "b")
    assert load(folder).summary.table().splitlines() == [
        f"photos in {folder}",
        "  files found           2",
        "  used                  1",
        "  copy of another file  1",
    ]


def test_a_decompression_bomb_is_skipped_before_decoding(folder: Path) -> None:
    save_photo(folder / "a")
    (folder / "bomb.png").write_bytes(png_that_claims(10_000, 9_000))  # a decoder would call it damaged
    assert load(folder).summary.skipped == {Skip.TOO_LARGE.value: 1}


def test_format_is_judged_by_content(folder: Path) -> None:
    (folder / "photo.pdf").write_bytes(encoded(solid("RGB", ORANGE), "PNG"))
    assert load(folder).files == ("photo.pdf",)


@pytest.mark.parametrize(("short_side", "used"), [(SIDE // MAX_ENLARGEMENT, 1), (SIDE // MAX_ENLARGEMENT - 1, 0)])
def test_a_photo_may_be_enlarged_so_far(folder: Path, short_side: int, used: int) -> None:
    save_photo(folder / "good")
    solid("RGB", "white", (short_side, 500)).save(folder / "small.png")
    assert load(folder).summary.used == 1 + used


def test_a_copy_of_a_damaged_file_is_damaged_too(folder: Path) -> None:
    save_photo(folder / "good")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PHOTO_PNG[:-100])
    assert load(folder).summary.skipped == {Skip.DAMAGED.value: 2}


@pytest.mark.parametrize("hidden", [".a.png", ".git/a.png", "sub/.thumbnails/a.png"])
def test_hidden_files_are_left_alone(folder: Path, hidden: str) -> None:
    save_photo(folder / "seen")
    (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
    save_photo(folder / hidden, shade=91)
    assert load(folder).summary.files == 1


def test_pictures_come_in_the_order_of_their_paths(folder: Path) -> None:
    names = ("Z", "a", "b-1", "b/1", "b/10", "b/2", "c", "林檎/é")
    for shade, name in reversed(list(enumerate(names))):
        (folder / name).parent.mkdir(exist_ok=True)
        save_photo(folder / name, shade)
    photos = load(folder)
    assert photos.files == names
    assert photos.pixels[:, 0, 0, 0].tolist() == list(range(len(names)))


def test_a_link_to_a_photo_is_followed(folder: Path) -> None:
    save_photo(folder.parent / "elsewhere.png")
    (folder / "link").symlink_to(folder.parent / "elsewhere.png")
    assert load(folder).files == ("link",)


def test_a_link_to_a_folder_is_followed(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    save_photo(folder.parent / "elsewhere" / "a")
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    assert load(folder).files == ("link/a",)


def test_a_symlink_loop_ends(folder: Path) -> None:
    (folder / "sub").mkdir()
    save_photo(folder / "sub" / "a")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "here").symlink_to(".")
    photos = load(folder)
    assert photos.files == ("sub/a",)
    assert photos.summary.files == 1


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
def test_a_name_that_is_not_utf8_can_be_printed(folder: Path, in_memory: bool) -> None:
    absurd = folder / os.fsdecode(b"caf\xe9")
    absurd.mkdir()
    save_photo(absurd / os.fsdecode(b"\xff.png"))
    photos = load(absurd, in_memory=in_memory)
    assert photos.files == ("\\xff.png",)
    assert photos.summary.table().encode().startswith(b"photos in ")


def test_pixels_in_memory_are_read_only(folder: Path) -> None:
    save_photo(folder / "a")
    assert not load(folder).pixels.flags.writeable


def test_photos_that_just_fit_the_memory_limit_leave_the_disk_alone(folder: Path, tmp_path: Path) -> None:
    save_photo(folder / "a")
    cache_dir = tmp_path / "cache"
    load_photos(folder, SIDE, cache_dir=cache_dir, memory_limit_bytes=SIDE * SIDE * 3, progress=False)
    assert not cache_dir.exists()


def test_photos_over_the_memory_limit_are_a_read_only_memory_map(folder: Path, tmp_path: Path) -> None:
    save_photo(folder / "a")
    pixels = load_photos(
        folder, SIDE, cache_dir=tmp_path / "cache", memory_limit_bytes=SIDE * SIDE * 3 - 1, progress=False
    ).pixels
    assert isinstance(pixels, np.memmap)
    assert not pixels.flags.writeable


def test_disk_cache_holds_the_same_pixels_as_memory(zoo: Path, tmp_path: Path) -> None:
    in_memory, on_disk, again = load(zoo), load(zoo, in_memory=False), load(zoo, in_memory=False)
    for photos in (on_disk, again):
        np.testing.assert_array_equal(photos.pixels, in_memory.pixels)
        assert photos.files == in_memory.files
        assert photos.summary == in_memory.summary


def swap_unnoticed(path: Path, shade: int) -> None:
    """Give the file another picture of as many bytes, and its old times."""
    before = path.stat()
    solid("RGB", (shade, 0, 0)).save(path, "BMP")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_an_unchanged_folder_is_not_decoded_again(folder: Path) -> None:
    solid("RGB", (10, 0, 0)).save(folder / "a.bmp")
    load(folder, in_memory=False)
    swap_unnoticed(folder / "a.bmp", 99)
    assert load(folder, in_memory=False).pixels[0, 0, 0, 0] == 10


CHANGES = {
    "a file more": lambda folder: save_photo(folder / "new"),
    "a file less": lambda folder: (folder / "b.bmp").unlink(),
    "a file renamed": lambda folder: (folder / "b.bmp").rename(folder / "c.bmp"),
    "a file touched": lambda folder: os.utime(folder / "b.bmp", (1, 1)),
    "a file longer": lambda folder: (folder / "b.bmp").write_bytes((folder / "b.bmp").read_bytes() + b" "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_decoded_again(folder: Path, change: str) -> None:
    solid("RGB", (10, 0, 0)).save(folder / "a.bmp")
    solid("RGB", (20, 0, 0)).save(folder / "b.bmp")
    load(folder, in_memory=False)
    swap_unnoticed(folder / "a.bmp", 99)
    CHANGES[change](folder)
    assert load(folder, in_memory=False).pixels[0, 0, 0, 0] == 99


def test_another_image_size_is_decoded_again(folder: Path) -> None:
    save_photo(folder / "a")
    load(folder, in_memory=False)
    assert load(folder, SIDE // 2, in_memory=False).pixels.shape == (1, SIDE // 2, SIDE // 2, 3)


@pytest.mark.parametrize("torn", ["pixels.u8", "index.json"])
def test_a_torn_cache_is_made_anew(folder: Path, torn: str) -> None:
    save_photo(folder / "a")
    before = load(folder, in_memory=False).pixels.copy()
    (entry,) = (folder.parent / "cache").iterdir()
    os.truncate(entry / torn, 5)
    np.testing.assert_array_equal(load(folder, in_memory=False).pixels, before)


def test_a_cache_inside_the_photos_folder_is_no_part_of_it(folder: Path) -> None:
    save_photo(folder / "a")
    load(folder, in_memory=False, cache_dir=folder)
    assert load(folder, in_memory=False, cache_dir=folder).summary.files == 1


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    for shade in range(3):
        save_photo(folder / f"{shade}", shade)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIDE * SIDE * 3 * 2, limits[1]))  # room for two of the three
    try:
        with pytest.raises(PhotosError, match=r"cache folder .*/cache' \(File too large\): up to 0 MB are needed"):
            load(folder, in_memory=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_is_a_file_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    save_photo(folder / "a")
    (tmp_path / "cache").touch()
    with pytest.raises(PhotosError, match=r"can't be kept in the cache folder .*/cache' \(File exists\)"):
        load(folder, in_memory=False)


def test_memory_on_the_disk_path_does_not_grow_with_the_photos(folder: Path) -> None:
    image_size, count = 128, 60
    for shade in range(count):
        save_photo(folder / f"{shade}", shade)
    load(folder, in_memory=False)  # imports and Pillow's plugins are not what is measured
    tracemalloc.start()
    load(folder, image_size, in_memory=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * image_size**2 * 3 / 4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, r"can't be opened \(No such file or directory\); name one with pictures in it"),
        (lambda path: path.touch(), "is not a folder; name one with pictures in it"),
        (lambda path: path.mkdir(), "holds no files"),
    ],
    ids=["missing", "a file", "empty"],
)
def test_a_wrong_folder_is_one_sentence(tmp_path: Path, make, sentence: str) -> None:
    make(tmp_path / "apples")
    with pytest.raises(PhotosError, match=rf"The photos folder '.*/apples' {sentence}"):
        load(tmp_path / "apples")


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
def test_a_folder_without_a_usable_photo_names_the_usual_reason(folder: Path, in_memory: bool) -> None:
    (folder / "a").touch()
    for name in "bc":
        (folder / name).write_bytes(b"text")
    with pytest.raises(PhotosError, match=r"of 3 files found, 2 fall under 'not a picture of a known format'"):
        load(folder, in_memory=in_memory)


def test_a_folder_that_loads_at_once_draws_no_progress_bar(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_photo(folder / "a")
    load_photos(folder, SIDE, cache_dir=folder, memory_limit_bytes=ANY_AMOUNT, progress=True)
    assert capfd.readouterr() == ("", "")


def test_photos_load_without_tensorflow() -> None:
    seen = "import sys, training.photos; print({'tensorflow', 'keras', 'jax'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", seen], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"


EXIF = Image.Exif()
EXIF[0x0112] = 6
PROFILE = profile_with_red_and_green_swapped()
NOISE = Image.effect_noise((SIDE, SIDE), 90)
ORIGINALS = [
    encoded(NOISE, "JPEG", exif=EXIF, icc_profile=PROFILE),
    encoded(NOISE.convert("CMYK"), "JPEG", progressive=True),
    encoded(NOISE, "PNG", exif=EXIF, icc_profile=PROFILE, transparency=0),
    encoded(NOISE.convert("RGB").quantize(8), "GIF", save_all=True, append_images=[solid("P", 1)]),
    encoded(NOISE.convert("RGBA"), "WEBP", exif=EXIF),
    encoded(NOISE.convert("RGB"), "TIFF", compression="tiff_lzw", exif=EXIF),
    encoded(NOISE.convert("F"), "TIFF"),
    encoded(NOISE.convert("RGB"), "BMP"),
    encoded(NOISE.convert("RGB"), "AVIF", exif=EXIF),
    encoded(NOISE.convert("RGB"), "PPM"),
]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    original=st.sampled_from(ORIGINALS),
    changes=st.lists(st.tuples(st.integers(0, 700) | st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    kept=st.floats(0.02, 1) | st.just(1.0),
)
@example(original=ORIGINALS[0], changes=[], kept=1.0)
def test_damaged_bytes_are_used_or_skipped_but_never_raise(
    original: bytes, changes: list[tuple[int, int]], kept: float
) -> None:
    damaged = bytearray(original)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with tempfile.TemporaryDirectory() as made:
        save_photo(Path(made, "a good photo"))
        Path(made, "photo").write_bytes(damaged[: round(len(damaged) * kept)])
        summary = load(Path(made)).summary
    assert summary.files == 2 == summary.used + sum(summary.skipped.values())
