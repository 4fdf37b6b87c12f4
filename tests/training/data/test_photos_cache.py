"""Decoded photos in memory, or on disk beyond the memory limit."""

import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.photo_files import SIDE, load, save_photo, solid
from training.data.photos import PhotosError, load_photos


@pytest.mark.parametrize(("spare_bytes", "on_disk"), [(0, False), (-1, True)])
def test_pixels_are_a_read_only_map_on_disk_when_over_the_limit(folder: Path, spare_bytes: int, on_disk: bool) -> None:
    save_photo(folder / "a")
    limit_bytes = SIDE * SIDE * 3 + spare_bytes
    cache_dir = folder.parent / "cache"
    photos = load_photos(folder, SIDE, cache_dir=cache_dir, memory_limit_bytes=limit_bytes)
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
    os.utime(
        folder / "a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # an unnoticed change: size and time are equal
    assert load(folder, in_memory=False).pixels[0, 0, 0, 0] == 10
    assert load(folder, SIDE // 2, in_memory=False).pixels[0, -1, -1, 0] == 99
    CHANGES[change](folder)
    assert load(folder, in_memory=False).pixels[0, 0, 0, 0] == 99


@pytest.mark.parametrize("file", ["pixels.u8", "index.json"])
def test_cache_is_rebuilt_when_it_is_truncated(folder: Path, file: str) -> None:
    save_photo(folder / "a")
    expected = load(folder, in_memory=False).pixels.copy()
    (entry,) = (folder.parent / "cache").iterdir()
    os.truncate(entry / file, 5)
    np.testing.assert_array_equal(load(folder, in_memory=False).pixels, expected)


def test_cache_is_ignored_when_inside_the_photo_folder(folder: Path) -> None:
    save_photo(folder / "a")
    load(folder, in_memory=False, cache_dir=folder)
    assert load(folder, in_memory=False, cache_dir=folder).summary.files == 1


def test_cache_is_removed_when_the_disk_is_full(folder: Path, tmp_path: Path) -> None:
    for shade in range(3):
        save_photo(folder / f"{shade}", shade)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIDE * SIDE * 3 * 2, limits[1]))  # space for two of the three
    try:
        with pytest.raises(PhotosError, match=r"in '.*/cache' \(File too large\); make 0 MB free"):
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
