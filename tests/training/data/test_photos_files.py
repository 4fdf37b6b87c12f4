"""What becomes of a folder: which files count, which are used, and how the others are accounted for."""

import dataclasses
import json
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.photo_files import (
    ANY_AMOUNT,
    ORANGE,
    SIDE,
    encoded,
    load,
    png_that_claims,
    save_photo,
    solid,
)
from training.data.photos import MAX_ENLARGEMENT, MAX_PIXELS, PhotosError, Skip, load_photos


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_terabyte(path: Path) -> None:
    """Write a whole photo that goes on in nothing: on the disk it takes a few kilobytes."""
    save_photo(path)
    os.truncate(path, 2**40)


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
    "terabyte": (make_terabyte, Skip.TOO_HEAVY),
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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b]0;owned\x07.png", "a\\x1b]0;owned\\x07.png"),  # a terminal's title
        ("\x1b[2J\x1b[31mb.png", "\\x1b[2J\\x1b[31mb.png"),  # an empty screen, in red
        ("two\nlines\r.png", "two\\nlines\\r.png"),
        ("gnp.\u202ea", "gnp.\\u202ea"),  # is shown as a.png
        ("\x9b5n.png", "\\x9b5n.png"),
        ("<script>alert(1)<\u2215script>.png", "<script>alert(1)<\u2215script>.png"),  # the page escapes it
        ("りんご\u3000 é.png", "りんご\u3000 é.png"),
    ],
)
def test_a_name_writes_nothing_on_a_terminal_but_itself(folder: Path, name: str, shown: str) -> None:
    inside = folder / name
    inside.mkdir()
    save_photo(inside / name)
    photos = load(inside)
    assert photos.files == (shown,)
    assert photos.summary.table().splitlines()[0] == f"photos in {folder}/{shown}"
    (inside / name).write_bytes(b"text")
    with pytest.raises(PhotosError) as refused:
        load(inside)
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_disk_cache_holds_the_same_pixels_as_memory(zoo: Path, tmp_path: Path) -> None:
    in_memory, on_disk, again = load(zoo), load(zoo, in_memory=False), load(zoo, in_memory=False)
    for photos in (on_disk, again):
        np.testing.assert_array_equal(photos.pixels, in_memory.pixels)
        assert photos.files == in_memory.files
        assert photos.summary == in_memory.summary


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
