"""Where the decoded photos are kept: in memory, or on disk beyond the limit."""

import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.photo_files import SIDE, load, save_photo, solid
from training.data import photos
from training.data.photos import PhotosError, Skip, load_photos


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


def test_a_photo_that_may_be_read_now_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_photo(folder / "a")
    save_photo(folder / "b", shade=91)
    with monkeypatch.context() as another_user:
        another_user.setattr(os, "access", lambda path, mode: path.name != "b")
        opened = photos._open_regular
        none = folder / "none"
        another_user.setattr(photos, "_open_regular", lambda path: opened(none if path.name == "b" else path))
        assert load(folder, in_memory=False).summary.skipped == {Skip.UNREADABLE.value: 1}
    assert load(folder, in_memory=False).summary.skipped == {}


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
