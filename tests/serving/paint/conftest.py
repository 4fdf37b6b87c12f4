"""Fixtures of several test files of `paint`."""

from pathlib import Path

import pytest

from tests.serving.paint.fake_batch_server import FakeBatchServer
from tests.serving.paint.paint_process import paint


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
