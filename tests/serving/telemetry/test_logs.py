"""The log: one line per request, without tokens and queries."""

import json
import logging
import re
from contextlib import suppress

import grpc
import pytest

from serving.telemetry.logs import JsonLines, TextLines
from tests.batch_process import batch_request
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import refusing
from tests.gateway_process import gateway_for

TOKEN = "0123456789abcdef"
BEARER = f"Bearer {TOKEN}"
SETTINGS = {"log_format": "json", "token": TOKEN}
SECRET = "swordfish-of-the-client"


def lines_with(log, text: str) -> list[str]:
    """Return the lines that hold `text`, once there are any."""
    wait_until(lambda: text in log.read_text(), text)
    return [line for line in log.read_text().splitlines() if text in line]


def test_request_is_one_line_of_json(gateway):
    reply = gateway.ask("/generate?version=3&seed=42", Authorization=BEARER, X_Request_ID="first")
    line = gateway.line_of(reply)
    assert {name: line.pop(name) for name in ("time", "trace_id", "seconds", "model_seconds")}
    assert line.pop("encode_seconds") >= 0
    assert line == {
        "level": "INFO",
        "request_id": "first",
        "method": "GET",
        "path": "/generate?seed=42&format=png&version=3",
        "status": 200,
        "outcome": "answered",
        "bytes": len(reply.body),
        "model_version": 3,
        "source": "model",
    }


def test_stream_is_one_line_of_json(batch):
    call = batch.pictures.GenerateBatch(
        batch_request(range(100)), metadata=[("authorization", BEARER), ("x-request-id", "stream")], timeout=LIMIT_S
    )
    size = sum(len(response.picture.data) for response in call)
    (line,) = lines_with(batch.log, '"stream"')
    line = json.loads(line)
    assert {name: line.pop(name) for name in ("time", "trace_id", "seconds", "queue_seconds", "model_seconds")}
    assert line.pop("encode_seconds") > 0
    assert line == {
        "level": "INFO",
        "request_id": "stream",
        "method": "POST",
        "path": "/ringo.v1.PictureService/GenerateBatch",
        "status": "OK",
        "outcome": "answered",
        "bytes": size,
        "model_version": 3,
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
        (f"/name/{SECRET}.png?size=x", "/name/-"),
        (f"/{SECRET}.png?size=x", "/-.png"),
    ],
)
def test_a_path_is_logged_without_the_query_and_harmless(gateway, path, logged):
    line = gateway.line_of(gateway.ask(path, Authorization=BEARER))
    assert line["path"] == logged
    assert SECRET not in gateway.log.read_text()


def test_no_right_or_wrong_token_is_in_any_line_of_both_servers(gateway, batch):
    wrong = f"Bearer {SECRET}"
    for number, header in enumerate((BEARER, wrong, TOKEN, f"Basic {TOKEN}")):
        gateway.line_of(gateway.ask("/generate?seed=1", Authorization=header))
        metadata = [("authorization", header), ("x-request-id", f"try-{number}")]
        call = batch.pictures.GenerateBatch(batch_request([1]), metadata=metadata, timeout=LIMIT_S)
        with suppress(grpc.RpcError):
            list(call)
        lines_with(batch.log, f'"try-{number}"')
    written = gateway.log.read_text() + batch.log.read_text()
    assert TOKEN not in written
    assert SECRET not in written


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028", "\x1b[2K"])
def test_message_is_one_line_when_it_has_control_characters(formatter, end):
    forged = "2026-01-01T00:00:00.000+00:00 ERROR forged"
    try:
        raise ValueError(f"x{end}{forged}")
    except ValueError as error:
        raised = (type(error), error, error.__traceback__)
    record = logging.LogRecord("any", logging.ERROR, "", 0, f"x{end}{forged}", (), raised)
    lines = formatter.format(record).splitlines()
    assert not [line for line in lines if line.startswith(forged)]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", "".join(lines))


def test_failed_probe_is_a_warning_in_the_log_when_sigterm_follows(tmp_path):
    with gateway_for("localhost:1", tmp_path, log_format="json", probe="/livez") as gateway:
        reply = gateway.ask("/readyz")
    line = gateway.line_of(reply)
    assert (line["level"], line["path"], line["outcome"]) == ("WARNING", "/readyz", "model_unavailable")
