"""A DNS server for gRPC targets such as dns://127.0.0.1:PORT/NAME:PORT."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, UDPServer
from threading import Thread

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


@contextmanager
def name_server() -> Iterator[NameServer]:
    with NameServer(("127.0.0.1", 0), Query) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield server
        finally:
            server.shutdown()
