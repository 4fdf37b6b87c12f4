"""The files of a photo folder: used, skipped, ignored and cached ones."""

import errno
import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import needs_permissions
from tests.photo_files import ORANGE, SIDE, encoded, load, png_that_claims, save_photo, solid, tiff_with_tags
from training.data.decoding import MAX_ENLARGEMENT, SkipReason
from training.data.photos import load_photos
from training.errors import TrainingError

PHOTO_PNG = encoded(Image.effect_noise((SIDE, SIDE), 90), "PNG")
PHOTO_JPEG = encoded(Image.effect_noise((SIDE, SIDE), 90), "JPEG")

BAD_FILES = {
    "broken link": (lambda path: path.symlink_to("nowhere"), SkipReason.BROKEN_LINK),
    "link to itself": (lambda path: path.symlink_to(path.name), SkipReason.BROKEN_LINK),
    "fifo": (os.mkfifo, SkipReason.SPECIAL),
    "device": (lambda path: path.symlink_to("/dev/zero"), SkipReason.SPECIAL),
    "empty": (b"", SkipReason.EMPTY),
    "terabyte": (lambda path: (save_photo(path), os.truncate(path, 2**40)), SkipReason.TOO_HEAVY),  # 4 kB on disk
    "text": ("りんごの写真".encode(), SkipReason.UNKNOWN),
    "postscript": (encoded(solid("RGB", ORANGE), "EPS"), SkipReason.UNKNOWN),
    "Fujifilm raw": (b"FUJIFILMCCD-RAW 0201", SkipReason.RAW),
    "Canon raw": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", SkipReason.RAW),
    "DNG": (tiff_with_tags(t50706=1), SkipReason.RAW),
    "raw with a thumbnail in front": (tiff_with_tags(t254=1, t330=8), SkipReason.RAW),
    "HEIC": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", SkipReason.HEIC),
    "signature alone": (b"\xff\xd8\xff", SkipReason.UNKNOWN),
    "more pixels than Pillow warns at": (png_that_claims(9000, 9943), SkipReason.TOO_LARGE),
    "more pixels than Pillow raises at": (png_that_claims(100_000, 100_000), SkipReason.TOO_LARGE),
    "half a png": (PHOTO_PNG[: len(PHOTO_PNG) // 2], SkipReason.DAMAGED),
    "half a jpeg": (PHOTO_JPEG[: len(PHOTO_JPEG) // 2], SkipReason.DAMAGED),
    "png without pixels": (png_that_claims(SIDE, SIDE), SkipReason.DAMAGED),
    "small": (encoded(solid("L", 9, (SIDE // MAX_ENLARGEMENT - 1, 99)), "PNG"), SkipReason.TOO_SMALL),
    "copy": (lambda path: save_photo(path, shade=90), SkipReason.COPY),
}


@pytest.mark.parametrize(("photo", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_skipped_with_its_reason(folder, photo, reason):
    save_photo(folder / "a good photo", shade=90)
    (folder / "photo.jpg").write_bytes(photo) if isinstance(photo, bytes) else photo(folder / "photo.jpg")
    for in_memory in (True, False, False):  # the last one only opens the cache
        photos = load(folder, in_memory=in_memory)
        assert photos.files == ("a good photo",)
        assert photos.summary.skipped == {reason.value: 1}
        assert photos.summary.fates == {"photo.jpg": reason.value}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other.NEF", SkipReason.RAW),
        ("photo.nef", SkipReason.PAIR),
        ("PHOTO.CR3", SkipReason.PAIR),
        ("photo.heic", SkipReason.PAIR),
    ],
)
def test_raw_is_never_a_second_photo(folder: Path, name: str, reason: SkipReason) -> None:
    save_photo(folder / "photo.JPG")
    (folder / name).write_bytes(encoded(solid("RGB", ORANGE), "TIFF"))
    photos = load(folder)
    assert (photos.files, photos.summary.skipped) == (("photo.JPG",), {reason.value: 1})


@pytest.mark.parametrize("operation", ["stat", "open", "read"])
def test_io_error_is_neither_damage_nor_cached(folder: Path, monkeypatch, operation: str) -> None:
    save_photo(folder / "a")
    save_photo(folder / "b", shade=91)
    name = "stat" if operation == "stat" else "open"
    real = getattr(Path, name)

    def fail(path: Path, *args: object, **options: object) -> object:
        if path.name != "b":
            return real(path, *args, **options)
        if operation == "read":
            return real(Path("/proc/self/mem"), "rb")  # reading at address 0 raises EIO
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, name, fail)
        assert load(folder, in_memory=False).summary.skipped == {SkipReason.IO_ERROR.value: 1}
    assert load(folder, in_memory=False).summary.skipped == {}


@needs_permissions
@pytest.mark.parametrize(("name", "mode"), [("b", 0o000), ("locked/b", 0o000), ("locked/b", 0o400)])
def test_file_is_skipped_only_while_it_or_its_folder_is_unreadable(folder: Path, name: str, mode: int) -> None:
    save_photo(folder / "a")
    (folder / "locked").mkdir()
    save_photo(folder / name, shade=91)
    locked = folder / name.removesuffix("/b")
    locked.chmod(mode)
    assert load(folder, in_memory=False).summary.skipped == {SkipReason.UNREADABLE.value: 1}
    locked.chmod(0o700)
    assert load(folder, in_memory=False).summary.skipped == {}


def test_visible_photos_are_sorted_by_path(folder: Path) -> None:
    names = ("Z", "a", "b-1", "b/1", "b/10", "b/2", "c", "林檎/é")
    for shade, name in reversed(list(enumerate((*names, ".a.png", ".git/a.png", "b/.thumbnails/a.png")))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_photo(folder / name, shade)
    for in_memory in (True, False, False):  # the last one only opens the cache
        photos = load(folder, in_memory=in_memory)
        assert (photos.files, photos.summary.files) == (names, len(names))
        assert photos.pixels[:, 0, 0, 0].tolist() == list(range(len(names)))


def test_links_are_followed_once_and_out_of_loops(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    save_photo(folder.parent / "elsewhere" / "a")
    save_photo(folder.parent / "photo", shade=91)
    (folder / "photo").symlink_to(folder.parent / "photo")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "here").symlink_to(".")
    (folder.parent / "run" / "grids").mkdir(parents=True)
    for name in ("config.json", "photos.json", "grids/1.png"):
        save_photo(folder.parent / "run" / name, shade=17)
    (folder / "run").symlink_to(folder.parent / "run")
    photos = load(folder)
    assert (photos.files, photos.summary.files) == (("photo", "sub/a"), 3)
    assert photos.summary.skipped == {SkipReason.RUN.value: 1}


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("a\x1b]0;owned\x07.png", "a\\x1b]0;owned\\x07.png"),  # sets the terminal's title
        ("\x1b[2J\x1b[31mb.png", "\\x1b[2J\\x1b[31mb.png"),  # clears the screen and turns it red
        ("two\nlines\r.png", "two\\nlines\\r.png"),
        (os.fsdecode(b"caf\xe9\xff.png"), "caf\\xe9\\xff.png"),
        ("gnp.\u202ea", "gnp.\\u202ea"),  # displays as a.png
        ("\x9b5n.png", "\\x9b5n.png"),
        ("<script>alert(1)<\u2215script>.png", "<script>alert(1)<\u2215script>.png"),  # the web page escapes it
        ("りんご\u3000 é.png", "りんご\u3000 é.png"),
    ],
)
def test_file_name_cannot_control_the_terminal(folder: Path, name: str, printed: str) -> None:
    subfolder = folder / name
    subfolder.mkdir()
    save_photo(subfolder / name)
    photos = load(subfolder)
    assert photos.files == (printed,)
    assert photos.summary.format_table().splitlines()[0] == f"photos in {folder}/{printed}"


@pytest.mark.parametrize(("spare_bytes", "on_disk"), [(0, False), (-1, True)])
def test_pixels_are_a_read_only_map_on_disk_when_over_the_limit(folder: Path, spare_bytes: int, on_disk: bool) -> None:
    save_photo(folder / "a")
    cache_dir = folder.parent / "cache"
    photos = load_photos(folder, SIDE, cache_dir=cache_dir, memory_limit_bytes=SIDE * SIDE * 3 + spare_bytes)
    assert isinstance(photos.pixels, np.memmap) == cache_dir.exists() == on_disk
    assert not photos.pixels.flags.writeable


CHANGES = {
    "file added": lambda folder: save_photo(folder / "new"),
    "file removed": lambda folder: (folder / "b.bmp").unlink(),
    "file renamed": lambda folder: (folder / "b.bmp").rename(folder / "c.bmp"),
    "file touched": lambda folder: os.utime(folder / "b.bmp", (1, 1)),
    "file longer": lambda folder: (folder / "b.bmp").write_bytes((folder / "b.bmp").read_bytes() + b" "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_photos_are_decoded_again_when_folder_or_size_changes(folder: Path, change: str) -> None:
    solid("RGB", (10, 0, 0)).save(folder / "a.bmp")
    solid("RGB", (20, 0, 0)).save(folder / "b.bmp")
    load(folder, in_memory=False)
    status = (folder / "a.bmp").stat()
    solid("RGB", (99, 0, 0)).save(folder / "a.bmp")
    # An unnoticed change: size and time are equal.
    os.utime(folder / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(folder, in_memory=False).pixels[0, 0, 0, 0] == 10
    assert load(folder, SIDE // 2, in_memory=False).pixels[0, -1, -1, 0] == 99
    CHANGES[change](folder)
    assert load(folder, in_memory=False).pixels[0, 0, 0, 0] == 99


def test_cache_is_another_one_when_black_levels_are_corrected(folder: Path) -> None:
    solid("RGB", (50, 50, 50)).save(folder / "a.png")
    for correct_black_level, value in ((False, 50), (True, 0), (False, 50)):
        photos = load(folder, in_memory=False, correct_black_level=correct_black_level)
        assert photos.pixels[0, 0, 0, 0] == value


@pytest.mark.parametrize("suffix", [".u8", ".json"])
def test_cache_is_rebuilt_when_it_is_truncated(folder: Path, suffix: str) -> None:
    save_photo(folder / "a")
    expected = load(folder, in_memory=False).pixels.copy()
    (file,) = (folder.parent / "cache").glob(f".*{suffix}")  # hidden, so no photo if the cache is in the photo folder
    os.truncate(file, 5)
    np.testing.assert_array_equal(load(folder, in_memory=False).pixels, expected)


def test_cache_is_removed_when_the_disk_is_full(folder: Path, tmp_path: Path) -> None:
    for shade in range(3):
        save_photo(folder / f"{shade}", shade)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIDE * SIDE * 3 * 2, limits[1]))  # space for two of the three
    try:
        with pytest.raises(TrainingError, match=r"in '.*/cache' \(File too large\); make 0 MB free"):
            load(folder, in_memory=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_memory_does_not_grow_with_photos_when_cached_on_disk(folder: Path) -> None:
    image_size, count = 128, 60
    for shade in range(count):
        save_photo(folder / f"{shade}", shade)
    load(folder, in_memory=False)  # first, so imports and Pillow's plugins are not measured
    tracemalloc.start()
    load(folder, image_size, in_memory=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * image_size**2 * 3 / 4
