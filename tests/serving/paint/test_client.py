"""The client of `paint`: retries, patience, checks of versions and images."""

import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import grpc
import pytest

from serving.paint.client import PictureClient, Secrets
from serving.paint.output_folder import CALL_SEEDS
from serving.rendering.query import Picture
from tests.conftest import LIMIT_S
from tests.serving.paint.conftest import FakeBatchServer, Gate, content, data_of, paint, rows


def test_retries_repeat_no_image_and_patience_counts_waits_only(monkeypatch):
    clock = SimpleNamespace(ahead_s=0.0, monotonic=lambda: time.monotonic() + clock.ahead_s)
    monkeypatch.setattr("serving.paint.client.time", clock)
    with (
        FakeBatchServer(aborts=dict.fromkeys((0, 2), grpc.StatusCode.UNAVAILABLE)) as server,
        closing(PictureClient(server.target, Secrets(), patience_s=60)) as client,
    ):
        clock.ahead_s += 100  # the check
        pictures = client.paint(range(3), Picture(format="png", version=1))
        next(pictures)
        clock.ahead_s += 100  # the reader's
        client.end_silent_calls()
        assert [image.seed for image in pictures] == [1, 2]
        assert server.calls == [[0, 1, 2], [0, 1, 2], [2]]


def test_a_silent_stream_ends_when_patience_does(tmp_path):
    gate = Gate(17)
    with FakeBatchServer(before=gate) as server:
        printed = paint(server, tmp_path, "--patience-s", "1", "--streams", "1", code=1)
        gate.set()
    assert "No image has come for" in printed.splitlines()[-1]
    assert len(rows(tmp_path)) == 17


def test_paint_says_after_a_second_why_it_waits_until_its_patience_ends(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent_port:  # accepts, and sends nothing
        silent = SimpleNamespace(target=f"127.0.0.1:{silent_port.getsockname()[1]}")
        first, *_, last = paint(silent, tmp_path, "--patience-s", "2", code=1).splitlines()
    assert first == f"No image for 1 s: {silent.target} has not answered yet."
    assert last.endswith(f"{silent.target} sent nothing.")
    sentence = f"{silent.target} does not answer: the connection was refused."
    first, *_, last = paint(silent, tmp_path, "--patience-s", "2", code=1).splitlines()
    assert first == f"No image for 1 s: {sentence}"
    assert last.startswith("No image has come for ")
    assert last.endswith(sentence)


def test_paint_stops_when_the_version_changes_unless_any_is_allowed(tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    with FakeBatchServer() as server:
        server.before = lambda seed, context: setattr(server, "version", 2 if seed >= 12 else 1)
        last = paint(server, one, code=3).splitlines()[-1]
        assert "no such version" in last
        assert "--any-version goes on with the newest" in last
        assert [row["model_version"] for row in rows(one)] == [1] * 12
        server.version = 1
        paint(server, several, "--any-version")
    assert [row["model_version"] for row in rows(several)] == [1] * 12 + [2] * 18
    assert (several / "000000" / "000000029.png").read_bytes() == data_of(29, version=2)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"spoilt": {"data": b"spoilt"}}, "The image of seed 0 from {} does not match its SHA-256."),
        ({"spoilt": {"seed": 5}}, "{} sent seed 5 of version 1, asked for seed 0 of version 1."),
        ({"spoilt": {"model_version": 3}}, "{} sent seed 0 of version 3, asked for seed 0 of version 1."),
        ({"aborts": {0: grpc.StatusCode.UNAUTHENTICATED}}, "{} answered UNAUTHENTICATED: for a moment"),
    ],
)
def test_paint_ends_and_keeps_no_image_when_refused_or_sent_another(tmp_path, fault, sentence):
    with FakeBatchServer(**fault) as server:
        output = paint(server, tmp_path, code=1)
    assert output.splitlines()[-1] == sentence.format(server.target)
    assert list(content(tmp_path)) == ["manifest.jsonl"]


def test_as_many_calls_run_at_a_time_as_streams(tmp_path):
    calls = threading.Barrier(3, timeout=LIMIT_S)
    with FakeBatchServer(before=lambda seed, context: seed % CALL_SEEDS or calls.wait()) as server:
        paint(server, tmp_path, "--streams", 3, seeds=f"0:{3 * CALL_SEEDS}")
