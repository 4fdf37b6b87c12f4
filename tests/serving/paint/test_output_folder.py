"""The folder of `paint`: shards, tars, damaged and foreign files."""

import os
import tarfile

import pytest

from tests.serving.paint.conftest import FakeBatchServer, content, paint, rows


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_shards_are_the_whole_byte_for_byte_when_together(server, tmp_path, layout):
    flags, seeds = ("--layout", layout, "--per-folder", 10), "29,0-8,12-24,40-61"
    paint(server, tmp_path / "whole", *flags, seeds=seeds)
    for index in range(4):
        paint(server, tmp_path / "parts", *flags, "--shard", f"{index}/4", seeds=seeds)
    parts = content(tmp_path / "parts")
    manifests = [parts.pop(f"manifest-{index:05d}-of-00004.jsonl") for index in range(4)]
    assert parts | {"manifest.jsonl": b"".join(manifests)} == content(tmp_path / "whole")


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_paint_renders_a_file_again_when_it_is_damaged(server, tmp_path, layout):
    flags = ("--layout", layout, "--per-folder", 10)
    paint(server, tmp_path, *flags)
    before = content(tmp_path)
    spoilt = tmp_path / ("000001.tar" if layout == "tar" else "000001/000000012.png")
    spoilt.write_bytes(spoilt.read_bytes()[:-12000] + b"x")
    server.calls.clear()
    paint(server, tmp_path, *flags)
    assert server.calls == [list(range(10, 20)) if layout == "tar" else [12]]
    assert content(tmp_path) == before


def test_paint_adds_seeds_and_refuses_when_a_tar_would_lose_others(server, tmp_path):
    flags = ("--layout", "tar", "--per-folder", 10)
    paint(server, tmp_path, *flags, seeds="10:15")
    server.calls.clear()
    paint(server, tmp_path, *flags, seeds="0:12")
    assert server.calls == [list(range(10))]
    assert [row["seed"] for row in rows(tmp_path)] == list(range(15))
    before = content(tmp_path)
    output = paint(server, tmp_path, *flags, seeds="15:30", code=1)
    assert output.startswith("000001.tar holds seed 14, which --seeds doesn't name;")
    assert content(tmp_path) == before


def test_a_shard_has_the_version_of_another_in_its_folder(tmp_path):
    with FakeBatchServer() as server:
        paint(server, tmp_path, "--shard", "0/2")
        server.version = 2
        output = paint(server, tmp_path, "--shard", "1/2", code=3)
    assert "loaded. Give --any-version to continue with the newest" in output


WRONG_TYPES = b'{"seed": "3", "sha256": "zz", "model_version": true}'
ROW = b'{"seed": 3, "file": "000000/000000003.png", "sha256": "%064d", "model_version": %d, "picture": ""}'
LONG_NAMES = tarfile.TarInfo("x" * 101).tobuf(tarfile.GNU_FORMAT)[:1024] * 600  # of one member


@pytest.mark.parametrize("row", [b"\xff", WRONG_TYPES, ROW % (0, 10**22), ROW % (0, -1), b"[" * 200_000])
def test_paint_renders_a_seed_again_when_its_manifest_row_is_damaged(server, tmp_path, row):
    paint(server, tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    before, lines = content(tmp_path), manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join([*lines[:3], row + b"\n", *lines[4:]]))
    server.calls.clear()
    paint(server, tmp_path)
    assert server.calls == [[3]]
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--per-folder", 10, "--format", "webp"], "The folder holds /generate?seed=0&format=png&version=1; other"),
        (["--per-folder", 7], "The folder holds seed 7 in 000000/000000007.png; use the layout of the first run"),
        (["--per-folder", 10, "--model-version", 2, "--seeds", "0:31"], "The folder holds images of version 1, and "),
    ],
)
def test_paint_leaves_a_folder_alone_when_the_options_differ(server, whole, flags, sentence):
    before = content(whole)
    assert sentence in paint(server, whole, *flags, code=1)
    assert content(whole) == before


@pytest.mark.parametrize("layout", ["files", "tar", "incomplete tar"])
@pytest.mark.parametrize("lost", [lambda manifest: manifest.unlink(), lambda manifest: manifest.write_bytes(b"")])
def test_paint_replaces_no_other_image_when_the_manifest_is_lost(server, tmp_path, layout, lost):
    flags = ("--layout", layout.split()[-1], "--per-folder", 10)
    paint(server, tmp_path, *flags)
    whole = content(tmp_path)
    for tar in tmp_path.glob("*.tar"):
        tar.rename(f"{tar}.part" if layout == "incomplete tar" else tar)
    before = {name: data for name, data in content(tmp_path).items() if "manifest" not in name}
    lost(tmp_path / "manifest.jsonl")
    with FakeBatchServer(version=2) as other:
        paint(other, tmp_path, *flags, code=1)
        output = paint(other, tmp_path, *flags, code=1)  # whose manifest names no image of the first try
    assert "it has other bytes, and the manifest does not name it" in output.splitlines()[-1]
    assert before.items() <= content(tmp_path).items()
    sentence = f"Images in {tmp_path} that the manifest does not name: 30; they are rendered again.\n"
    assert paint(server, tmp_path, *flags).startswith(sentence) == (layout != "files")
    assert content(tmp_path) == whole


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("000000.tar", lambda tar: b"foreign", "it has other bytes"),
        ("000000.tar", lambda tar: LONG_NAMES, "it has other bytes"),
        ("000000.tar", lambda tar: tar + b"x", "000000.tar holds seed 5, which --seeds doesn't name"),
        ("000000.tar", lambda tar: tar, "000000.tar holds seed 5, which --seeds doesn't name"),
        ("000000.tar.part", lambda tar: tar, "000000.tar holds seed 5, which --seeds doesn't name"),
    ],
)
def test_paint_replaces_no_unnamed_tar_of_other_seeds_or_bytes(server, tmp_path, name, change, sentence):
    flags, tar = ("--layout", "tar", "--per-folder", 10), tmp_path / name
    paint(server, tmp_path, *flags, seeds="0:10")
    foreign = change((tmp_path / "000000.tar").read_bytes())
    (tmp_path / "000000.tar").rename(tar)
    tar.write_bytes(foreign)
    (tmp_path / "manifest.jsonl").unlink()
    for _ in range(2):  # the second time, with the manifest of the first
        assert sentence in paint(server, tmp_path, *flags, seeds="0:5", code=1)
    assert tar.read_bytes() == foreign


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest-00000-of-00002.jsonl", "000000/000000003.png"])
def test_paint_fails_at_once_when_a_fifo_is_in_the_place_of_a_file(server, tmp_path, name, make):
    paint(server, tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    assert paint(server, tmp_path, code=1).splitlines()[-1].endswith(f"{name}: it is not a regular file; move it away.")


@pytest.mark.parametrize(
    "name", ["000000/000000003.png.part", "manifest.jsonl.part", "manifest.jsonl", "000000.tar.part"]
)
@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_paint_writes_to_no_fifo_or_link_in_the_place_of_a_file(server, tmp_path, name, kind):
    foreign, path = tmp_path / "foreign", tmp_path / "out" / name
    foreign.write_bytes(b"foreign")
    path.parent.mkdir(parents=True)
    path.symlink_to(foreign) if kind == "link" else os.mkfifo(path)
    is_continued = name != "manifest.jsonl.part"  # that one is written anew
    output = paint(server, tmp_path / "out", "--layout", "tar" if "tar" in name else "files", code=is_continued)
    assert output.splitlines()[-1].endswith(f"{name}: it is not a regular file; move it away.") == is_continued
    assert path.exists() == is_continued
    assert foreign.read_bytes() == b"foreign"


def test_paint_writes_through_no_link_to_a_folder(server, tmp_path, tmp_path_factory):
    (tmp_path / "000000").symlink_to(foreign := tmp_path_factory.mktemp("foreign"))
    assert "000000: it is a link, not a folder; move it away." in paint(server, tmp_path, code=1)
    assert content(foreign) == {}
