"""A DNS server for gRPC targets such as dns://127.0.0.1:PORT/NAME:PORT."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NAME_ERROR = 3
A_RECORD = 1


class NameServer:
    """Resolves every name to 127.0.0.1, or no name while `is_away`."""

    def __init__(self) -> None:
        self.is_away = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:  # from `close`
                return
            self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        """Return the response to `query`, as RFC 1035 has it."""
        end = query.index(b"\0", 12) + 5  # of the question: labels, type, class
        (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
        has_answer = kind == A_RECORD and not self.is_away
        flags = 0x8580 | (NAME_ERROR if self.is_away else 0)  # response, authoritative, recursion desired and available
        head = query[:2] + struct.pack("!HHHHH", flags, 1, int(has_answer), 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, A_RECORD, 1, 0, 4) + socket.inet_aton("127.0.0.1")
        return head + query[12:end] + (record if has_answer else b"")

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@contextmanager
def name_server() -> Iterator[NameServer]:
    server = NameServer()
    try:
        yield server
    finally:
        server.close()
