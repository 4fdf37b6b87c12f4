"""`verify` of true, changed and foreign images."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.rendering.encoding import RENDERER_VERSION, encode
from tests.conftest import UNPRIVILEGED
from tests.fake_model_server import FakeModelServer
from tests.gateway_process import run_serving
from tests.photo_files import png_that_claims

URLS = ["/generate?seed=42", "/generate?seed=42&size=32", "/grid?seeds=1-5,9", "/morph?start=1&end=2"]


@pytest.fixture(scope="module")
def pngs(gateway) -> list[bytes]:
    return [gateway.ask(url).body for url in URLS]


def verify(target: str, *files: Path) -> tuple[int, list[str], str]:
    """Return the exit status, the verdict of each file, and stderr."""
    done = run_serving("verify", *files, wrapper=UNPRIVILEGED, model_server=target)
    assert "\x1b" not in done.stdout + done.stderr
    return done.returncode, [line.partition(": ")[2] for line in done.stdout.splitlines()], done.stderr


def rewritten(png: bytes, *, pixel: int = 0, **facts: str) -> bytes:
    """Return `png` with `pixel` added to one channel, and with other `facts`."""
    with Image.open(io.BytesIO(png)) as image:
        pixels, chunks = np.array(image), image.info | facts
    pixels[3, 3, 1] += pixel
    return encode(pixels, "png", chunks)


def test_true_images_are_identical(model_server, pngs, tmp_path):
    files = [tmp_path / f"{place}.png" for place in range(len(pngs))]
    for file, png in zip(files, pngs, strict=True):
        file.write_bytes(png)
    assert verify(model_server.target, *files) == (0, ["identical"] * len(pngs), "")


def test_verify_takes_folders_and_tars(model_server, pngs, tmp_path):
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    (inner / "1.png").write_bytes(pngs[0])
    (inner / "2.png").write_bytes(pngs[1] + b"x")
    whole, cut = tmp_path / "folder" / "some.tar", tmp_path / "folder" / "cut.tar"
    with tarfile.open(whole, "w") as tar:
        tar.add(inner, "x")
    cut.write_bytes(whole.read_bytes()[:700])
    second = (data := whole.read_bytes()).index(b"x/2.png")
    (tmp_path / "short.tar").write_bytes(data[:second])  # between two files
    (tmp_path / "spoilt.tar").write_bytes(data[:second] + b"\xff" * 512 + data[second + 512 :])
    (tmp_path / "joined.tar").write_bytes(data * 2)
    huge = tarfile.TarInfo("x/2.json")
    huge.size = 2**70
    (tmp_path / "huge.tar").write_bytes(data[:second] + huge.tobuf(tarfile.GNU_FORMAT) + data[second + 512 :])
    (tmp_path / "folder" / "upper.PNG").write_bytes(pngs[0])
    (tmp_path / "folder" / "closed").mkdir(mode=0)
    (tmp_path / "folder" / "link").symlink_to(inner)
    (tmp_path / "long.tar").write_bytes(tarfile.TarInfo("x" * 101).tobuf(tarfile.GNU_FORMAT)[:1024] * 600)
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    damaged = "unreadable (the tar is damaged)"
    assert verify(model_server.target, tmp_path / "folder", tmp_path / "none", tmp_path / "fifo.png")[1] == [
        *(damaged, "identical", "different", "identical", "different", "identical"),
        "unreadable (Permission denied)",
        "unreadable (a link to a folder; name it itself)",
        "unreadable (no PNG in it)",
        "unreadable (it is not a regular file; move it away)",
    ]
    found = verify(model_server.target, *(tmp_path / f"{name}.tar" for name in ("short", "spoilt", "huge", "joined")))
    assert found[:2] == (1, ["identical", damaged] * 3 + ["identical", "different", damaged])
    assert verify(model_server.target, tmp_path / "long.tar") == (2, [damaged], "")


def test_verify_names_each_fault_and_exits_with_the_lowest_status(model_server, pngs, tmp_path):
    png = pngs[0]
    address, encoded_by = "/generate?seed=42&format=png&version=3", "unknown model (encoded by renderer"
    faults = {
        "one pixel one level off": (rewritten(png, pixel=1), "different"),
        "another seed": (rewritten(png, Picture=address.replace("42", "43")), "different"),
        "one more chunk": (rewritten(png, Comment="mine"), "different"),
        "something behind the end": (png + b"\0", "different"),
        "a seed that there is not": (rewritten(png, Picture=address.replace("42", "-1")), "different (seed='-1' is"),
        "no version": (rewritten(png, Picture="/generate?seed=42&format=png"), "different (Picture="),
        "no resource": (rewritten(png, Picture="/etc/passwd"), "different (Picture="),
        "another version": (rewritten(png, Picture=address.replace("=3", "=2")), "unknown model (The model server has"),
        "another model": (rewritten(png, Model="pear"), "unknown model (of the model 'pear', not 'apple')"),
        "another renderer": (rewritten(png, Renderer="1"), f"{encoded_by} '1', not '{RENDERER_VERSION}')"),
        "a renderer for the screen": (rewritten(png, Renderer="\x1b[2J"), rf"{encoded_by} '\x1b[2J'"),
        "no address": (rewritten(png, Picture="//[apple"), "different (Picture='//[apple' is not valid"),
        "a bomb": (png_that_claims(100_000, 100_000), "unreadable (more pixels than any image of Ringo)"),
        "half a bomb": (png_that_claims(10_000, 10_000), "unknown model (it has no text chunk Picture)"),
        "a \x1b[2Jname": (png, "identical"),
        "torn": (png[:20], "unreadable (not a PNG)"),
        "no PNG": (b"GIF89a", "unreadable (not a PNG)"),
    }
    files = [tmp_path / name for name in faults]
    for file, (changed, _) in zip(files, faults.values(), strict=True):
        file.write_bytes(changed)
    status, verdicts, complaint = verify(model_server.target, *files, tmp_path / "none.png")
    assert verdicts.pop() == "unreadable (No such file or directory)"
    assert status == 1
    assert "Traceback" not in complaint
    assert "Decompression" not in complaint
    assert "".join(verdicts).isprintable()
    for name, (_, expected), found in zip(faults, faults.values(), verdicts, strict=True):
        assert found.startswith(expected), name


def test_image_of_another_version_is_different_if_a_model_server_answers(pngs, tmp_path):
    (tmp_path / "old.png").write_bytes(rewritten(pngs[0], Picture="/generate?seed=42&format=png&version=4"))
    with FakeModelServer(version=4) as newer:
        assert verify(newer.target, tmp_path / "old.png")[:2] == (1, ["different"])
    status, verdicts, complaint = verify(newer.target, tmp_path / "old.png")
    sentence = f"The model server at {newer.target} does not answer: the connection was refused."
    assert (status, verdicts, complaint.splitlines()[1:]) == (2, [], [sentence])
