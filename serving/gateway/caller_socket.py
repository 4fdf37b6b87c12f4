"""The gateway's end of a connection, as gunicorn sees it: a socket that no thread waits for."""

import socket
import ssl
from typing import Any

DISCARDED_BYTES = 2**16  # at a time


class CallerSocket:
    """A caller's socket that keeps what is sent until `flush`, which hands over what the system takes at once.

    So a thread that has said its answer is free, whether the caller reads it or not. All else is the socket's own,
    but for what has to go past TLS, which another thread may be in the middle of.
    """

    def __init__(self, sock: socket.socket, *, waits: bool) -> None:
        self.sock = sock
        self._waits = waits  # if told to; only TLS has to
        self._said: list[bytes] = []
        self._leaving = b""
        self._left = 0  # bytes of it that the system has taken
        self._head_bytes = 0  # of a head that has come, and is yet to be read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    @property
    def unsent_bytes(self) -> int:
        """How many bytes a `flush` has left in memory: all of an answer, as long as any of it is to be sent."""
        return len(self._leaving)

    @property
    def decrypted_bytes(self) -> int:
        """How many bytes of what has come TLS has at hand: of a record of up to 16 KiB, gunicorn reads 8."""
        return self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0

    def read_first(self, head_bytes: int) -> None:
        """Have `recv` return the head of so many bytes that has come, and nothing of what may have come after it."""
        self._head_bytes = head_bytes

    def recv(self, limit: int) -> bytes:
        """Return what comes next, up to `limit` bytes; nothing if the caller has gone."""
        try:
            said: bytes = self.sock.recv(min(limit, self._head_bytes or limit))
        except BlockingIOError:  # readable without a byte to read: urgent data, which nobody needs
            return b""
        self._head_bytes -= min(len(said), self._head_bytes)
        return said

    def send(self, said: bytes) -> int:
        """Keep `said`; return its length."""
        self._said.append(said)
        return len(said)

    def sendall(self, said: bytes) -> None:
        """Keep `said`."""
        self._said.append(said)

    def setblocking(self, blocking: bool) -> None:
        """Have calls wait, or not. Where they do so already the system isn't asked, which would cost the GIL."""
        timeout_s = None if blocking and self._waits else 0.0
        if self.sock.gettimeout() != timeout_s:
            self.sock.settimeout(timeout_s)

    def settimeout(self, timeout_s: float | None) -> None:
        """Leave it as it is: gunicorn asks for this around the reading of bodies, which nobody here does."""

    def flush(self) -> None:
        """Hand over what the system takes at once; if the caller has gone, forget it all and raise OSError."""
        if self._said:
            self._leaving, self._left = b"".join((self._leaving[self._left :], *self._said)), 0
            self._said.clear()
        rest = memoryview(self._leaving)
        try:
            self.setblocking(False)
            while self._left < len(rest):
                self._left += self.sock.send(rest[self._left :])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._leaving = b""
            raise
        self._leaving = b""

    def peek(self, limit: int, flags: int = 0) -> bytes:
        """Return what has come and is yet to be read."""
        return socket.socket.recv(self.sock, limit, socket.MSG_PEEK | flags)

    def has_gone(self) -> bool:
        """Return whether the caller has closed the connection, or his half of it."""
        try:
            return not self.peek(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def discard(self) -> bool:
        """Read what has come, to no end; return whether more may come."""
        try:
            return bool(socket.socket.recv(self.sock, DISCARDED_BYTES))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def shut(self, how: int) -> None:
        """Close one or both halves of the connection; raise OSError if the caller has gone."""
        socket.socket.shutdown(self.sock, how)
