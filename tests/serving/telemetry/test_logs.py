"""The log: one line per request, without tokens, names and queries; a blocked stderr costs lines only."""

import fcntl
import http.client
import json
import logging
import os
import re
import signal
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from serving.pb.ringo.v1 import picture_service_pb2 as api
from serving.rendering.query import seed_of_name
from serving.telemetry.logs import MAX_QUEUED, JsonLines, TextLines
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import refusing
from tests.faults.load import send
from tests.gateway_process import Gateway, gateway_for, shell
from tests.serving.gateway.test_refused_requests import answer_to

TOKEN = "0123456789abcdef"
BEARER = f"Bearer {TOKEN}"
SETTINGS = {"log_format": "json", "token": TOKEN}
SECRET = "swordfish-of-the-client"


def lines_with(log, text: str) -> list[str]:
    """Return the lines that hold `text`, once there are any."""
    return wait_until(lambda: [line for line in log.read_text().splitlines() if text in line], text)


ANSWERED = {"level": "INFO", "outcome": "answered", "model_version": 3}


def test_request_and_stream_are_one_line_of_json_each(gateway, batch):
    reply = gateway.ask("/generate?version=3&seed=42", Authorization=BEARER, X_Request_ID="first")
    line = gateway.line_of(reply)
    assert {line.pop(name) for name in ("time", "trace_id", "seconds", "model_seconds", "encode_seconds")}
    assert line == ANSWERED | {
        "request_id": "first",
        "method": "GET",
        "path": "/generate?seed=42&format=png&version=3",
        "status": 200,
        "bytes": len(reply.body),
        "source": "model",
    }
    call = batch.stream(range(100), metadata=[("authorization", BEARER), ("x-request-id", "stream")])
    size = sum(len(response.picture.data) for response in call)
    (line,) = map(json.loads, lines_with(batch.log, '"stream"'))
    assert line.pop("encode_seconds") > 0
    assert {line.pop(name) for name in ("time", "trace_id", "seconds", "queue_seconds", "model_seconds")}
    assert line == ANSWERED | {
        "request_id": "stream",
        "method": "POST",
        "path": "/ringo.v1.PictureService/GenerateBatch",
        "status": "OK",
        "bytes": size,
        "pictures": 100,
    }


def test_message_of_the_model_server_is_in_the_log_and_not_in_the_response(gateway, model_server, monkeypatch):
    monkeypatch.setattr(model_server, "reply", refusing(grpc.StatusCode.INTERNAL))
    reply = gateway.ask("/generate?seed=4711", Authorization=BEARER)
    line = gateway.line_of(reply)
    assert (line["level"], line["outcome"]) == ("WARNING", "model_mismatch")
    assert line["cause"] == "Predict: INTERNAL: node 7 of 10.0.0.1"
    assert b"node 7" not in reply.body
    assert len(lines_with(gateway.log, "node 7")) == 1


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        (f"/generate?seed=1&{SECRET}=1", "/generate"),
        (f"/generate?seed={SECRET}", "/generate"),
        (f"/about?key={SECRET}", "/about"),
        (f"/nothing?{SECRET}", "/nothing"),
        ("/a%0a%7b%22level%22%3a", "/a%0A%7B%22level%22%3A"),
        (f"/{'a' * 1000}", f"/{'a' * 199}…"),
        ("/42.png?size=x", "/42.png"),
        (f"/42.png?name={SECRET}", "/42.png"),
        (f"/generate?name={SECRET}", f"/generate?seed={seed_of_name(SECRET)}&format=png&version=3"),
        (f"/name/{SECRET}.png", f"/generate?seed={seed_of_name(SECRET)}&format=png&version=3"),
        (f"/name/{SECRET}.png?size=x", "/name/-"),
        (f"/name/{SECRET}.bmp", "/name/-"),
        (f"/{SECRET}.png?size=x", "/-.png"),
    ],
)
def test_a_path_is_logged_without_the_query_and_harmless(gateway, path, logged):
    assert gateway.line_of(gateway.ask(path, Authorization=BEARER))["path"] == logged
    assert SECRET not in gateway.log.read_text()


def test_no_token_and_no_name_is_in_any_line_of_both_servers(gateway, batch):
    assert answer_to(gateway.port, f"GET /name/{SECRET} {SECRET}.png HTTP/1.1\r\n\r\n".encode())[0] == 400
    metadata = [("authorization", BEARER), ("x-request-id", "named")]
    batch.pictures.Generate(api.GenerateRequest(name=SECRET), metadata=metadata, timeout=LIMIT_S)
    lines_with(batch.log, '"named"')
    for number, header in enumerate((BEARER, f"Bearer {SECRET}", TOKEN, f"Basic {TOKEN}")):
        gateway.line_of(gateway.ask("/generate?seed=1", Authorization=header))
        metadata = [("authorization", header), ("x-request-id", f"try-{number}")]
        with suppress(grpc.RpcError):
            list(batch.stream([1], metadata=metadata))
        lines_with(batch.log, f'"try-{number}"')
    written = gateway.log.read_text() + batch.log.read_text()
    assert TOKEN not in written
    assert SECRET not in written


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028", "\x1b[2K"])
def test_message_is_one_line_when_it_has_control_characters(formatter, end):
    forged = "2026-01-01T00:00:00.000+00:00 ERROR forged"
    raised = (ValueError, ValueError(f"x{end}{forged}"), None)
    lines = formatter.format(logging.LogRecord("any", logging.ERROR, "", 0, f"x{end}{forged}", (), raised)).splitlines()
    assert not [line for line in lines if line.startswith(forged)]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", "".join(lines))


def test_failed_probe_is_a_warning_in_the_log_when_sigterm_follows(tmp_path):
    with gateway_for("localhost:1", tmp_path, log_format="json", probe="/livez") as gateway:
        reply = gateway.ask("/readyz")
    line = gateway.line_of(reply)
    assert (line["level"], line["path"], line["outcome"]) == ("WARNING", "/readyz", "model_unavailable")


@pytest.fixture(params=[":"])
def blocked(request, tmp_path):
    """A gateway whose stderr is a full pipe, or redirected as the parameter says."""
    with gateway_for("localhost:1", tmp_path, wrapper=shell(request.param), unread=True, probe="/livez") as gateway:
        fcntl.fcntl(gateway.process.stderr, fcntl.F_SETPIPE_SZ, 4096)  # bytes: 20 lines
        yield gateway


def statuses(gateway: Gateway, count: int) -> set[int]:
    """Return the statuses of `count` requests, each of which is a line."""
    return {gateway.ask("/nothing").status for _ in range(count)}


def test_gateway_counts_lost_lines_and_ends_when_stderr_is_blocked(blocked):
    # On one connection, so to one worker. MAX_QUEUED lines are being written, and as many wait. If more waited, this
    # would hang.
    with closing(http.client.HTTPConnection("127.0.0.1", blocked.port, timeout=LIMIT_S)) as connection:
        assert {send(connection, "/nothing").status for _ in range(3 * MAX_QUEUED)} == {404}
    dropped = blocked.metric("ringo_log_lines_dropped_total")
    assert dropped > 0
    report = next(line for line in blocked.process.stderr if b"lines were dropped" in line)
    assert re.search(rb"WARNING (\d+) log lines", report)[1] == b"%d" % dropped
    assert statuses(blocked, 100) == {404}  # five times the pipe's size
    blocked.process.terminate()
    assert blocked.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("blocked", ["exec 2>&-", "exec >&- 2>&-"], indirect=True)
def test_log_lines_go_nowhere_else_when_stderr_is_closed(blocked):
    assert {(process / "fd" / "2").readlink() for process in blocked.workers()} == {Path("/dev/null")}


@pytest.mark.parametrize("blocked", ["exec 2> /dev/full && export RINGO_WORKERS=2"], indirect=True)
def test_lost_lines_are_counted_when_a_worker_is_replaced(blocked):
    before = blocked.workers()
    for worker in before:
        os.kill(int(worker.name), signal.SIGKILL)
    wait_until(lambda: len(blocked.workers()) == 2 and not set(before) & set(blocked.workers()), "new workers")
    assert statuses(blocked, 10) == {404}
    wait_until(lambda: blocked.metric("ringo_log_lines_dropped_total") >= 10, "lost lines")
