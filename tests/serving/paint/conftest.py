"""Fixtures and helpers of the tests of `paint`, in this process or as a process of its own."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from serving.paint.command import main
from tests.conftest import ROOT, command, ended_afterwards
from tests.serving.paint.fake_batch_server import FakeBatchServer


def paint(server, out, *flags, seeds="0:30", code=0, token=None) -> str:
    """Run `paint` in this process; return its stdout and stderr."""
    words = ["--target", server.target, "--seeds", seeds, "--out", out, *flags]
    stdout, stderr = os.dup(1), os.dup(2)
    with TemporaryFile("w+") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            status = main([str(word) for word in words], {"RINGO_TOKEN": token} if token else {})
        finally:
            for number, stream in ((1, stdout), (2, stderr)):
                os.dup2(stream, number)
                os.close(stream)
        output.seek(0)
        printed = output.read()
    assert status == code, printed
    return printed


@contextmanager
def running_paint(server, out, *flags, seeds="0:30", stdout=subprocess.PIPE, stderr=subprocess.PIPE):
    """Run `paint` as a process during the `with` block."""
    words = command("serving", "paint", "--target", server.target, "--seeds", seeds, "--out", out, *flags)
    process = subprocess.Popen(words, cwd=ROOT, stderr=stderr, stdout=stdout, text=True)
    with ended_afterwards(process):
        yield process


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def server():
    with FakeBatchServer() as server:
        yield server


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> Path:
    """A folder with seeds 0 to 29, ten to a folder."""
    out = tmp_path_factory.mktemp("whole")
    paint(server, out, "--per-folder", 10)
    return out
