"""A fake batch server; `paint` in this process or as a process of its own."""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import grpc
import pytest

from serving.paint.command import main
from serving.pb.ringo.v1 import picture_service_pb2 as pb
from serving.pb.ringo.v1 import picture_service_pb2_grpc
from tests.conftest import LIMIT_S, ROOT, command, ended_afterwards
from tests.fake_model_server import LocalServer


def data_of(seed: int, version: int = 1) -> bytes:
    return f"picture {seed} of version {version}\n".encode()


@dataclass(eq=False)
class FakeBatchServer(LocalServer, picture_service_pb2_grpc.PictureServiceServicer):
    """Answers on a socket while the `with` block lasts, with images of few bytes.

    `before(seed, context)` is called before each image. `aborts` has seeds at which one call ends, with its status, and
    `spoilt` has fields of all images. `calls` has the seeds of each call, and `more` seeds that none asks for.
    """

    version: int = 1
    before: Callable[[int, Any], object] = lambda seed, context: None
    aborts: dict[int, grpc.StatusCode] = field(default_factory=dict)
    spoilt: dict[str, Any] = field(default_factory=dict)
    calls: list[list[int]] = field(default_factory=list)
    more: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self, picture_service_pb2_grpc.add_PictureServiceServicer_to_server, threads=16)
        self.target = f"ipv4:{self.target}"

    def DescribeModel(self, request: Any, context: Any) -> pb.DescribeModelResponse:  # noqa: N802 (the service's name)
        return pb.DescribeModelResponse(model_versions=[self.version] if self.version else [])

    def GenerateBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        seeds = list(request.list.seeds)
        self.calls.append(seeds)
        for seed in seeds + self.more:
            self.before(seed, context)
            if code := self.aborts.pop(seed, None):
                context.abort(code, "for a moment")
            if request.options.model_version != self.version:
                context.abort(grpc.StatusCode.NOT_FOUND, "The model server has no such version of 'apple' loaded.")
            data = data_of(seed, self.version)
            fields = {"seed": seed, "data": data, "sha256": sha256(data).digest(), "model_version": self.version}
            yield pb.GenerateBatchResponse(picture=fields | self.spoilt)


class Gate(threading.Event):
    """Holds calls at `seed` or a later one until it is set."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def __call__(self, seed: int, context: Any) -> None:
        if seed >= self._seed:
            assert self.wait(LIMIT_S)


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
    manifest = out / "manifest.jsonl"
    return [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []


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
