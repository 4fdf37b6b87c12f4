"""How long `paint` waits: the clock of its patience, streams that fall silent, and pauses between attempts."""

import time
from contextlib import closing

import grpc

from serving.paint.client import LONGEST_PAUSE_S, PictureClient, Secrets, backoff_s
from serving.rendering.query import Picture
from tests.serving.paint.fake_batch_server import FakeBatchServer, Gate
from tests.serving.paint.test_command import paint, rows

QUERY = Picture(format="png", version=1)


class Clock:
    """The module `time`, some seconds ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def test_patience_starts_with_the_first_call_when_the_folder_check_takes_longer(monkeypatch):
    clock, failures = Clock(), [grpc.StatusCode.UNAVAILABLE]
    monkeypatch.setattr("serving.paint.client.time", clock)

    def fail_once(seed, context):
        if failures:
            context.abort(failures.pop(), "for a moment")

    with (
        FakeBatchServer(before=fail_once) as server,
        closing(PictureClient(server.target, Secrets(), patience_s=60)) as client,
    ):
        clock.ahead_s += 100  # the check
        assert [painted.seed for painted in client.paint([7], QUERY)] == [7]


def test_a_silent_stream_ends_when_patience_does(tmp_path):
    gate = Gate(17)
    with FakeBatchServer(before=gate) as server:
        printed = paint(server, tmp_path, "--patience-s", "1", "--streams", "1", code=1)
        gate.open()
    assert "No picture has come for" in printed.splitlines()[-1]
    assert len(rows(tmp_path)) == 17


def test_a_stream_is_not_silent_when_its_reader_is_slow(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("serving.paint.client.time", clock)
    with (
        FakeBatchServer() as server,
        closing(PictureClient(server.target, Secrets(), patience_s=60)) as client,
    ):
        pictures = client.paint(range(3), QUERY)
        next(pictures)
        clock.ahead_s += 100  # the reader's
        client.end_silent_calls()
        assert [painted.seed for painted in pictures] == [1, 2]
        assert server.calls == [[0, 1, 2]]


def test_the_pause_stays_at_its_longest_when_attempts_go_on():
    assert LONGEST_PAUSE_S / 2 <= backoff_s(10_000) <= LONGEST_PAUSE_S
