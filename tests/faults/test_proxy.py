"""The gateway behind deploy/nginx.conf: stalled clients, caching, TLS, outages."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.fake_model_server import FakeModelServer, answer, rendering_other_bytes
from tests.faults.processes import Proxy, needs_nginx, proxy_before
from tests.gateway_process import Gateway, Reply

pytestmark = needs_nginx

STALLED = 300
ANSWERED_WITHIN_S = 1.0
ANSWERED_IMAGES = {"name": "ringo_requests_total", "resource": "generate"}
GRID = "/grid?seeds=0-3&columns=2&size=512"  # an image of 317 kB
HEAD = f"GET {GRID} HTTP/1.1\r\nHost: localhost\r\n".encode()
URLS = [f"/generate?seed={seed}&format=png&version={VERSION}" for seed in range(10)]


@dataclass(frozen=True)
class Service:
    """A gateway and its proxy, with or without TLS."""

    gateway: Gateway
    proxy: Proxy
    tls: bool = False

    def connect(self) -> socket.socket:
        """Open a connection with small buffers, as across a network."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        plain.settimeout(LIMIT_S)
        plain.connect(("127.0.0.1", self.proxy.tls_port if self.tls else self.proxy.port))
        return plain

    def open(self) -> socket.socket:
        """Open a connection, and do the handshake if it has TLS."""
        plain = self.connect()
        return self.proxy.context.wrap_socket(plain, server_hostname="localhost") if self.tls else plain

    def ask(self, path: str, **headers: str) -> Reply:
        return self.gateway.ask(path, sock=self.open(), **headers)


@pytest.fixture(scope="module")
def service(gateway, tmp_path_factory) -> Iterator[Service]:
    with proxy_before(gateway.port, tmp_path_factory.mktemp("proxy")) as proxy:
        yield Service(gateway, proxy)


@contextmanager
def stalled(service: Service, sent: bytes) -> Iterator[list[socket.socket]]:
    """Hold STALLED connections that have sent `sent` and send nothing more."""
    with ExitStack() as clients:
        connections = [clients.enter_context(service.connect()) for _ in range(STALLED)]
        for connection in connections:
            connection.sendall(sent)
        yield connections


def check_others_get_answers(service: Service, meanwhile: Callable[[int], None] = lambda number: None) -> None:
    """Request 30 new images on new connections; each response comes within ANSWERED_WITHIN_S."""
    first = time.monotonic_ns()  # so that no image is cached
    for number in range(30):
        meanwhile(number)
        began_s = time.monotonic()
        status = service.ask(f"/generate?seed={first + number}").status
        assert (status, time.monotonic() - began_s < ANSWERED_WITHIN_S) == (200, True)


@pytest.mark.parametrize(
    ("tls", "sent"),
    [(False, b""), (False, HEAD), (False, HEAD + b"\r\n"), (True, b""), (True, b"\x16\x03\x01\x02\x00\x01")],
    ids=["silent", "half-a-head", "unread-response", "silent-tls", "half-a-hello"],
)
def test_stalled_connections_do_not_block_other_clients(service, tls, sent):
    service = replace(service, tls=tls)
    with stalled(service, sent):
        wait_until(lambda: service.gateway.metric("ringo_requests_in_flight") == 0, "the gateway to be idle")
        check_others_get_answers(service)


def test_clients_that_send_one_byte_at_a_time_do_not_block_others(service):
    head = HEAD + b"X-Slow: " + b"x" * 100
    with stalled(service, b"") as connections:

        def send_one_byte(number: int) -> None:
            for connection in connections:
                with suppress(OSError):  # nginx ends a head that takes longer than 10 s
                    connection.sendall(head[number : number + 1])

        check_others_get_answers(service, send_one_byte)


def test_a_slow_reader_gets_every_byte(service):
    service = replace(service, tls=True)
    expected = service.gateway.ask(GRID).body
    with service.open() as connection, connection.makefile("rb") as response:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        check_others_get_answers(service)
        assert response.read().partition(b"\r\n\r\n")[2] == expected


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /generate?seed=" + b"1" * 2**14 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**14 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 2**14 + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n", 413),
        (b"apple\r\n\r\n", 400),
    ],
    ids=["url", "header", "headers", "body", "no-http"],
)
def test_requests_beyond_the_limits_do_not_reach_the_gateway(service, head, status):
    before = service.gateway.metric("ringo_requests_total")
    with service.connect() as connection:
        connection.sendall(head)
        assert connection.recv(2**12).startswith(b"HTTP/1.1 %d " % status)
    assert service.gateway.metric("ringo_requests_total") == before


def test_cached_permanent_urls_reach_the_gateway_once_per_url(service):
    before = service.gateway.metric(**ANSWERED_IMAGES)
    with ThreadPoolExecutor(20) as pool:
        assert {reply.status for reply in pool.map(service.ask, [f"{url}&size=64" for url in URLS * 50])} == {200}
    assert service.gateway.metric(**ANSWERED_IMAGES) - before == len(URLS)


def test_a_cached_response_has_the_headers_of_the_gateway_and_its_own_id(service):
    direct = service.gateway.ask(URLS[0])
    ignored = [{"If_Match": '"x"'}, {"If_Unmodified_Since": "Sun, 06 Nov 1994 08:49:37 GMT"}]
    replies = [service.ask(URLS[0], **headers) for headers in ({}, {}, *ignored)]
    for reply in replies:
        assert (reply.status, reply.body) == (200, direct.body)
        for name in ("ETag", "Cache-Control", "Content-Type", "Content-Location", "Access-Control-Allow-Origin"):
            assert reply.headers[name] == direct.headers[name]
    replies += [service.ask(url) for url in ("/generate?seed=1", "/nothing")]
    assert len({reply.headers["X-Request-ID"] for reply in replies}) == len(replies)
    assert service.ask(URLS[0], X_Request_ID="mine-1").headers["X-Request-ID"] == "mine-1"
    for url in (URLS[0], "/generate?seed=1"):
        assert service.ask(url, If_None_Match=service.ask(url).headers["ETag"]).status == 304


@pytest.mark.parametrize(
    "url",
    [
        *("/generate?seed=1", "/42.png", f"/42.png?version={VERSION}", f"/random.png?version={VERSION}"),
        *(f"/name/alice.png?version={VERSION}", f"/generate?name=alice&version={VERSION}"),
        *(f"/generate?%6eame=alice&version={VERSION}", f"/generate?version={VERSION}&n%61m%65=alice"),
    ],
)
def test_an_image_is_not_cached_when_its_url_is_not_permanent(service, url):
    before = service.gateway.metric(**ANSWERED_IMAGES)
    assert {service.ask(url).status for _ in range(3)} == {200}
    assert service.gateway.metric(**ANSWERED_IMAGES) - before == 3


def test_random_images_do_not_wait_for_each_other_when_requested_at_once(gateway, tmp_path):
    with proxy_before(gateway.port, tmp_path, {"lock_timeout 1s": "lock_timeout 60s"}) as proxy:
        ask, began_s = Service(gateway, proxy).ask, time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(ask, [f"/generate?format=png&version={VERSION}"] * 16))
        assert time.monotonic() - began_s < 5  # with the lock, one passes each 0.5 s
    assert {reply.status for reply in replies} == {200}
    assert len({reply.headers["Ringo-Seed"] for reply in replies}) == len(replies)


@pytest.mark.parametrize(("reply", "settings"), [(answer, {"token": "t" * 16}), (rendering_other_bytes(), {})])
def test_permanent_url_gets_304_when_its_response_is_not_cached(start_gateway, tmp_path, reply, settings):
    headers = {"Authorization": f"Bearer {settings['token']}"} if settings else {}
    with FakeModelServer(version=VERSION, reply=reply) as model_server:
        gateway = start_gateway(model_server.target, **settings)
        with proxy_before(gateway.port, tmp_path) as proxy:
            ask = partial(Service(gateway, proxy).ask, URLS[0], **headers)
            assert ask(If_None_Match=ask().headers["ETag"]).status == 304


def test_queries_and_names_are_in_no_log(service):
    for url in ("/generate?seed=hush", "/name/hush%2Fname/x.png", "/name/hush.bmp", "/hush.png", "/generate?name=hush"):
        service.ask(url)
    service.ask("/end")
    for log in (service.proxy.log, service.gateway.log):
        assert "hush" not in wait_until(lambda: "/end" in (text := log.read_text()) and text, "a line")  # noqa: B023


def test_cached_images_are_served_when_the_gateway_is_away(model_server, start_gateway, tmp_path):
    gateway = start_gateway(model_server.target)
    with proxy_before(gateway.port, tmp_path) as proxy:
        service = Service(gateway, proxy)
        cached = service.ask(URLS[0]).body
        gateway.process.terminate()
        gateway.process.wait(LIMIT_S)
        assert service.ask(URLS[0]).body == cached
        refused = service.ask(URLS[1])
        assert (refused.status, refused.headers["Retry-After"], refused.problem["status"]) == (503, "1", 503)
        assert refused.headers["Access-Control-Allow-Origin"] == "*"
