"""HTTP requests that the gateway refuses without calling the model."""

import contextlib
import http.client
import json
import socket

import pytest

from tests.conftest import LIMIT_S

HOST = "Host: localhost\r\n"
MAX_SEED = 2**63 - 1


def request(
    target: str = "/generate?seed=1", *, method: str = "GET", host: str = HOST, headers: str = "", body: str = ""
) -> bytes:
    return f"{method} {target} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n{body}".encode()


def answer_to(port: int, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        with contextlib.suppress(ConnectionError):  # answered, and closed, before the end
            connection.sendall(sent)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, dict(response.headers), response.read(response.length or 0)  # nothing follows HEAD


# URL, the parameter that the problem names, its values
BAD_VALUES = [
    ("/generate?seed={}", "seed", ["-1", "-0", "%2B1", str(2**63), "9" * 3000, "1.5", "1e3", "0x2A", "1_000", "%2042"]),
    ("/generate?seed={}", "seed", ["42%0A", "007", "", "apple", "%EF%BC%94", "%D9%A3", "%FF", "%00", "1&seed=1"]),
    ("/generate?{}", "seed", ["seed"]),
    ("/generate?name={}", "name", ["", "%00", "a%7F", "%C2%85", "%FF", "a%ED%A0%80"]),
    ("/generate?name={}", "name", ["a" * 257, "%C3%A9" * 129, "a&name=a"]),
    ("/generate?seed=1&{}", "name", ["name=a"]),
    ("/{}", "seed", ["apple.png", "007.webp", "-1.jpg", f"{2**63}.png"]),
    ("/name/{}.png", "name", ["", "a%0Db", "%FF"]),
    ("/42.png?{}", "seed", ["seed=42"]),
    ("/random.png?{}", "name", ["name=a"]),
    ("/name/alice.png?{}", "format", ["format=png"]),
    ("/generate?size={}", "size", ["15", "1025", "0", "-64", "064", "64.0", "64px", "", "9" * 3000, "64&size=64"]),
    ("/generate?format={}", "format", ["PNG", "gif", "jpg", "image/png", ""]),
    ("/generate?version={}", "version", ["latest", "-1", str(2**63), "01", ""]),
    ("/generate?{}", "sede", ["sede=42"]),
    ("/generate?{}", "Seed", ["seed=1&Seed=2"]),
    ("/generate?{}", "", ["=1"]),
    ("/generate?{}", "a" * 64 + "…", ["a" * 99]),
    ("/generate?{}", "truncation", ["truncation=0.5"]),
    ("/grid?columns={}", "columns", ["0", "65"]),
    ("/grid?seeds={}", "seeds", ["", ",", "1,", "1-", "-1", "2-1", "1-2-3", "0-64", "0-63,64", "1+,2"]),
    ("/grid?seeds={}", "seeds", ["1;2", f"{MAX_SEED}-0", f"0-{MAX_SEED}", "1," * 64 + "1"]),
    ("/grid?{}", "seed", ["seed=1"]),
    # at most 2^20 pixels in all; white tiles count
    ("/grid?{}", "size", ["size=257", "seeds=1-2&columns=64&size=256", "seeds=0-63&size=129", "size=1024"]),
    ("/morph?{}", "start", ["end=2"]),
    ("/morph?start=1{}", "end", ["", "&end="]),
    ("/morph?start=1&end=2&{}", "frames", ["frames=1", "frames=65"]),
    ("/morph?start=1&end=2&{}", "size", ["frames=2&size=1024"]),
    ("/animation?start=1&end=2&{}", "frames", ["frames=1", "frames=65"]),
    ("/animation?start=1&end=2&{}", "format", ["format=png"]),
    ("/animation?start=1&end=2&{}", "size", ["frames=64&size=129"]),
]
FIVE = "Content-Length: 5\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
# bytes, status, the parameter that the problem names
REFUSED: list[tuple[bytes, int, str | None]] = [
    *((request(url.format(value)), 400, parameter) for url, parameter, values in BAD_VALUES for value in values),
    (request("/generate?" + "a&" * 2000), 400, "a"),
    *((request(url), 404, None) for url in ("/generate%00?seed=1", "/generate/", "/42", "/42.gif")),
    *((request(url, host=""), 400, None) for url in ("/generate?seed=1", "/livez")),
    *((request(host=f"Host: {host}\r\n"), 400, "Host") for host in ("a b", "a/b", "a@b", "[::1", "a:x", "a:1:2", "<")),
    *((request(host=f"Host: {host}\r\n"), 400, "Host") for host in ("a" * 64, "a" * 300, "a..b")),
    (request("/metrics"), 404, None),  # only on the metrics port
    *((request(f"/static/{up}gateway.py"), 404, None) for up in ("../", "%2e%2e%2f", "..%5c")),
    *((request(url), 404, None) for url in ("/generate?seed=1&version=99", "/static//etc/passwd")),
    (request("evil:443", method="CONNECT"), 404, None),
    (request(method="POST", headers=FIVE, body="apple"), 405, None),
    (request(method="TRACE"), 405, None),
    *((request(headers=f"Accept: {types}\r\n"), 406, None) for types in ("text/html", "image/*;q=0, */*")),
    *((request(url, headers=FIVE, body="apple"), 413, None) for url in ("/generate?seed=1", "/docs")),
    (request(headers="Content-Length: 100000000000\r\n"), 413, None),
    (request(headers="Expect: 100-continue\r\n" + FIVE), 413, None),
    *((request(headers=CHUNKED, body=body), 413, None) for body in ("5\r\napple\r\n0\r\n\r\n", "zz\r\n")),
]
EVERYWHERE = {
    "Access-Control-Allow-Origin": "*",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}


@pytest.mark.parametrize(
    ("sent", "status", "parameter"), REFUSED, ids=[sent.split(b" HTTP")[0].decode()[:60] for sent, *_ in REFUSED]
)
def test_gateway_refuses_without_calling_the_model(gateway, model_server, sent, status, parameter):
    before = len(model_server.requests)
    got, headers, body = answer_to(gateway.port, sent)
    problem = json.loads(body)
    assert (got, problem["status"]) == (status, status), body
    assert problem.get("parameter") == parameter
    assert headers["Content-Type"] == "application/problem+json"
    assert headers.items() >= (EVERYWHERE | {"Cache-Control": "no-store"}).items()
    assert len(model_server.requests) <= before + (b"version=99" in sent)
    assert "Traceback" not in gateway.log.read_text() + body.decode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/generate?seed=" + "1" * 4096), 414),
        (request(headers=f"X: {'a' * 8186}\r\n"), 431),  # 8191 bytes
        (request(headers="".join(f"X-{n}: a\r\n" for n in range(101))), 431),
        (request(headers=FIVE + CHUNKED, body="0\r\n\r\n"), 400),
        (request("/generate?name=りんご"), 400),
        (request(method="get"), 400),
        (request().replace(b"HTTP/1.1", b"HTTP/2.0"), 400),
        *((request(headers=f"{field}\r\n"), 400) for field in ("A b: c", "A: \0", "A: b\r\n c")),
    ],
    ids=["url", "header", "headers", "two-lengths", "not-ascii", "lower-case", "http-2", "space", "nul", "folded"],
)
def test_gunicorn_refuses_a_head_beyond_its_limits(gateway, model_server, sent, status):
    before = len(model_server.requests)
    got, headers, body = answer_to(gateway.port, sent)
    assert (headers["Content-Type"], "X-Request-ID" in headers) == ("text/html", False)
    assert (got, b"at most 100 header fields of 8190 bytes each" in body) == (status, status == 431)
    assert (b"percent-encode" in body) == (not sent.isascii())
    assert len(model_server.requests) == before


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/generate", "Accept admits none of image/png, image/webp, image/jpeg; set format."),
        ("/grid?seeds=5-2", "seeds='5-2' runs backwards at 5-2; write 2-5."),
        ("/grid?seeds=7,0-100", "seeds='7,0-100' is 102 seeds; at most 64 are allowed."),
        ("/generate?seed=1&seed=2", "seed='1, 2' was given twice; give it once."),
        ("/generate?size=64&size=64&size=64", "size='64, 64, 64' was given 3 times; give it once."),
        ("/generate?seed=1&name=a", "name='a' was given beside seed; give one of them."),
        ("/generate?name=a&size=%FF", "size='%FF' is not valid; "),
        ("/name/a%FFb.png", "name='a\ufffdb' is not UTF-8; encode it."),
        ("/generate?name=%FF", "name='%FF' is not UTF-8; encode it."),
        ("/generate?seed=%2042", f"seed=' 42' is not valid; allowed is one whole number from 0 to {MAX_SEED}, "),
        ("/generate?seed=%FF", "seed='%FF' is not valid; "),
        (f"/generate?seed={'9' * 3000}", f"seed='{'9' * 64}…' is not valid; "),
    ],
)
def test_problem_says_what_is_wrong_and_what_to_do(gateway, url, sentence):
    assert gateway.ask(url, Accept="text/html").problem["detail"].startswith(sentence)


def test_options_of_the_whole_server_names_the_methods(gateway):
    status, headers, body = answer_to(gateway.port, request("*", method="OPTIONS"))
    assert (status, headers["Allow"], body) == (200, "GET, HEAD, OPTIONS", b"")


@pytest.mark.parametrize("path", ["/generate?seed=1", "/livez", "/static/gallery.css"])
def test_responses_have_the_security_headers(gateway, path):
    assert dict(gateway.ask(path).headers).items() >= EVERYWHERE.items()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_their_own_files_only_and_cannot_be_framed(gateway, path):
    reply = gateway.ask(path)
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert b"://" not in reply.body


@pytest.mark.parametrize(
    "header",
    [
        *("Host: evil.example", "SCRIPT_NAME: /generate", "X-Forwarded-Host: evil.example", "X-Original-URL: /about"),
        *("X-Forwarded-Prefix: /evil", "X-Script-Name: /evil"),
    ],
)
def test_gateway_ignores_addresses_in_request_headers(gateway, header):
    host = "" if header.startswith("Host") else HOST
    _, headers, body = answer_to(gateway.port, request("/", host=host, headers=header + "\r\n"))
    _, expected_headers, expected = answer_to(gateway.port, request("/"))
    assert (body, headers["ETag"]) == (expected, expected_headers["ETag"])
