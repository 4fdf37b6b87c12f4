"""What is refused at both doors before any work is done for it, by real bytes on real sockets."""

import contextlib
import http.client
import socket

import grpc
import pytest

from serving.pb.ringo.v1 import picture_service_pb2
from tests.batch_process import SERVING, batch_request
from tests.conftest import LIMIT_S
from tests.gateway_process import gateway_for

HOST = "Host: localhost\r\n"


@pytest.fixture(scope="module")
def gateway(model_server, tmp_path_factory):
    with gateway_for(model_server.target, tmp_path_factory.mktemp("gateway")) as gateway:
        gateway.ask("/readyz")  # so that its golden pictures are asked for
        yield gateway


def request(
    target: str = "/generate?seed=1",
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    host: str = HOST,
    headers: str = "",
    body: str = "",
) -> bytes:
    return f"{method} {target} {version}\r\n{host}{headers}Connection: close\r\n\r\n{body}".encode()


def answer_to(port: int, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of what comes for the bytes `sent` until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        came = b""
        with contextlib.suppress(ConnectionError):  # answered, and closed, before the end
            connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(2**16):
                came += part
    head, _, body = came.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100 "):
        head, _, body = body.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


REFUSED: dict[str, tuple[bytes, int]] = {
    # URL
    "2,000 parameters": (request("/generate?" + "a&" * 2000), 400),
    "a byte that is no UTF-8": (request("/generate?seed=%ff"), 400),
    "a null byte": (request("/generate%00?seed=1"), 404),
    "a way out of the folder": (request("/static/../gateway.py"), 404),
    "an encoded way out": (request("/static/%2e%2e%2fgateway.py"), 404),
    "another way out": (request("/static/..%5cgateway.py"), 404),
    "an absolute path": (request("/static//etc/passwd"), 404),
    # header
    "nothing that is liked": (request(headers="Accept: text/html\r\n"), 406),
    # body
    "a body": (request(headers="Content-Length: 5\r\n", body="apple"), 413),
    "a body of 100 GB": (request(headers="Content-Length: 100000000000\r\n"), 413),
    "a body in chunks": (request(headers="Transfer-Encoding: chunked\r\n", body="5\r\napple\r\n0\r\n\r\n"), 413),
    "chunks that are none": (request(headers="Transfer-Encoding: chunked\r\n", body="zz\r\n"), 413),
    "a body that asks first": (request(headers="Expect: 100-continue\r\nContent-Length: 5\r\n"), 413),
    "a body of a page": (request("/docs", headers="Content-Length: 5\r\n", body="apple"), 413),
    # method and protocol
    "POST": (request(method="POST", headers="Content-Length: 5\r\n", body="apple"), 405),
    "TRACE": (request(method="TRACE"), 405),
    "CONNECT": (request("evil:443", method="CONNECT"), 404),
    # counts and pixels
    "a seed too high": (request("/generate?seed=9223372036854775808"), 400),
    "digits that are not ASCII": (request("/generate?seed=%D9%A1"), 400),
    "a number of 4,000 digits": (request("/generate?size=" + "9" * 4000), 400),
    "65 seeds": (request("/grid?seeds=0-64"), 400),
    "65 frames": (request("/morph?start=1&end=2&frames=65"), 400),
    "a side of 1,025 pixels": (request("/generate?seed=1&size=1025"), 400),
    "more than a million pixels": (request("/grid?seeds=0-63&size=129"), 400),
    "a column too many": (request("/grid?columns=65"), 400),
    "a column of a thousand": (request("/grid?seeds=0-63&columns=64&size=1024"), 400),
}
EVERYWHERE = {
    "Access-Control-Allow-Origin": "*",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_gateway_refuses(gateway, model_server, what):
    sent, expected = REFUSED[what]
    before = len(model_server.requests)
    status, headers, body = answer_to(gateway.port, sent)
    assert status == expected
    assert headers["Content-Type"] == "application/problem+json"
    assert headers.items() >= (EVERYWHERE | {"Cache-Control": "no-store"}).items()
    assert len(body) < 8192
    assert len(model_server.requests) == before
    assert "Traceback" not in gateway.log.read_text() + body.decode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/generate?seed=" + "1" * 4096), 414),
        (request(headers=f"X: {'a' * 8192}\r\n"), 431),
        (request(headers="".join(f"X-{n}: a\r\n" for n in range(101))), 431),
        (request(headers="Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", body="0\r\n\r\n"), 400),
    ],
    ids=["url", "header", "headers", "two-lengths"],
)
def test_gunicorn_refuses_a_head_beyond_its_limits(gateway, model_server, sent, status):
    before = len(model_server.requests)
    assert answer_to(gateway.port, sent)[0] == status
    assert len(model_server.requests) == before


def test_who_says_that_there_is_no_body_keeps_the_connection(gateway):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S)) as connection:
        connection.request("GET", "/generate?seed=1", headers={"Content-Length": "0"})
        answer = connection.getresponse()
    assert (answer.status, answer.will_close) == (200, False)


@pytest.mark.parametrize("path", ["/generate?seed=1", "/about", "/openapi.json", "/livez", "/static/gallery.css"])
def test_an_answer_loads_nothing_and_is_what_it_says(gateway, path):
    status, headers, _ = answer_to(gateway.port, request(path))
    assert status == 200
    assert headers.items() >= EVERYWHERE.items()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_from_here_alone_and_is_framed_by_nobody(gateway, path):
    _, headers, _ = answer_to(gateway.port, request(path))
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "claim",
    ["Host: evil.example", "SCRIPT_NAME: /generate", "X-Forwarded-Host: evil.example", "X-Original-URL: /about"],
)
def test_what_a_caller_claims_to_be_the_address_changes_nothing(gateway, claim):
    host = "" if claim.startswith("Host") else HOST
    _, headers, body = answer_to(gateway.port, request("/", host=host, headers=claim + "\r\n"))
    _, expected_headers, expected = answer_to(gateway.port, request("/"))
    assert body == expected
    assert headers["ETag"] == expected_headers["ETag"]


TOO_LONG = batch_request([2**63 - 1] * 120_000).SerializeToString()
MALFORMED = "message='not shown' is not valid; allowed is a message as ringo/v1/picture_service.proto defines it."


@pytest.mark.parametrize(
    ("method", "sent", "code", "details"),
    [
        ("Generate", b"\xff" * 9, "INVALID_ARGUMENT", MALFORMED),
        ("GenerateBatch", b"\x12\xff", "INVALID_ARGUMENT", MALFORMED),
        ("DescribeModel", b"\xff", "INVALID_ARGUMENT", MALFORMED),
        ("Generate", b"\x7a\x01\x01", "INVALID_ARGUMENT", "GenerateRequest.15='set' is not valid; allowed is in Gen"),
        ("Generate", b"\0" * (2**20 + 1), "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (1048577"),
        (
            "GenerateBatch",
            TOO_LONG,
            "RESOURCE_EXHAUSTED",
            "SERVER: Received message",
        ),
        ("GenerateBatch", batch_request([0] * 100_001).SerializeToString(), "INVALID_ARGUMENT", "list.seeds='100001"),
        ("GenerateBatch", batch_request(range(100_001)).SerializeToString(), "INVALID_ARGUMENT", "range.end='100001'"),
        ("GenerateBatch", batch_request([1], size=1025).SerializeToString(), "INVALID_ARGUMENT", "options.size='1025'"),
        ("Reload", b"", "UNIMPLEMENTED", "Method not found!"),
    ],
)
def test_the_batch_server_refuses(batch, model_server, method, sent, code, details):
    before = len(model_server.requests)
    call = batch.channel.unary_unary(f"/ringo.v1.PictureService/{method}")
    with pytest.raises(grpc.RpcError) as refused:
        call(sent, timeout=LIMIT_S)
    assert refused.value.code().name == code
    assert refused.value.details().startswith(details)
    assert len(model_server.requests) == before
    assert "Traceback" not in batch.log.read_text()


def test_a_message_that_unpacks_to_more_than_there_may_be_is_refused(batch):
    call = batch.channel.unary_unary("/ringo.v1.PictureService/Generate")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"\0" * 2**24, timeout=LIMIT_S, compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_above_16_kb_is_refused(batch):
    with pytest.raises(grpc.RpcError) as refused:
        batch.pictures.DescribeModel(
            picture_service_pb2.DescribeModelRequest(), metadata=[("x", "a" * 2**15)], timeout=LIMIT_S
        )
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_is_no_grpc_leaves_the_batch_server_serving(batch):
    port = int(batch.target.rpartition(":")[2])
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\0" * 500, bytes(range(256)) * 8):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):
                pass
    assert batch.status() == SERVING
