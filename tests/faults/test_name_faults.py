"""Model server and name are gone, as after a container stops."""

import socket
import struct
import time
from collections.abc import Iterator
from socketserver import BaseRequestHandler, UDPServer
from threading import Thread

import pytest

from tests.conftest import wait_until
from tests.faults.processes import model_server

BACK_WITHIN_S = 5.0
NAME_ERROR = 3
A_RECORD = 1


class NameServer(UDPServer):
    """Resolves every name to 127.0.0.1, or no name while `is_away`."""

    is_away = False


class Query(BaseRequestHandler):
    """Sends the response to one query, as in RFC 1035."""

    def handle(self) -> None:
        query, connection = self.request
        end = query.index(b"\0", 12) + 5  # of the question: labels, type, class
        (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
        has_answer = kind == A_RECORD and not self.server.is_away
        # Response, authoritative, recursion desired and available.
        flags = 0x8580 | (NAME_ERROR if self.server.is_away else 0)
        head = query[:2] + struct.pack("!HHHHH", flags, 1, int(has_answer), 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, A_RECORD, 1, 0, 4) + socket.inet_aton("127.0.0.1")
        connection.sendto(head + query[12:end] + (record if has_answer else b""), self.client_address)


@pytest.fixture
def names() -> Iterator[NameServer]:
    """A DNS server for gRPC targets such as dns://127.0.0.1:PORT/NAME:PORT."""
    with NameServer(("127.0.0.1", 0), Query) as server:
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "away_s", [20, *(pytest.param(s, marks=[pytest.mark.chaos, pytest.mark.timeout(s + 300)]) for s in (60, 150, 600))]
)
def test_first_image_comes_within_5_s_after_the_name_is_back(names, start_gateway, away_s):
    with model_server() as server:
        target = f"dns://127.0.0.1:{names.server_address[1]}/model-server.test:{server.port}"
        gateway = start_gateway(target, cache_mb=0)
        names.is_away = True
        server.kill()
        back_s = time.monotonic() + away_s
        wait_until(lambda: gateway.ask("/generate?seed=2").status == 503, "a refusal")
        wait_until(lambda: time.monotonic() > back_s, "the time away", limit_s=away_s + 10)
        server.start()
        names.is_away = False
        wait_until(lambda: gateway.ask("/generate?seed=3").status == 200, "an image", limit_s=BACK_WITHIN_S)
