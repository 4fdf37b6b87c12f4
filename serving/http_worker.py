"""A worker of gunicorn that no caller can hold up: who has yet to say what he wants takes no thread, and has a limit.

gunicorn's own gives a thread to every new connection, for five seconds if nothing comes, and without a limit to one
that sends half a request or doesn't read its answer; and its loop waits two seconds for each caller that doesn't close.
A few hundred of any of them stop it.
"""

import contextlib
import errno
import resource
import selectors
import socket
import threading
import time
from collections import deque
from contextvars import ContextVar
from functools import partial
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.workers.gthread import TConn, ThreadWorker

HEAD_TIMEOUT_S = 10.0  # from the connection to the end of the request's head
SEND_TIMEOUT_S = 30.0  # for the answer to leave, on top of the longest request: 3 MB at 1 Mbit/s take 25 s
LINGER_S = 2.0  # for the caller to close first, so that what he still sends doesn't cost him the end of the answer
MAX_HEAD_BYTES = 2**15  # as much as nginx takes
MAX_CONNECTIONS = 1000
MAX_LINGERING = 100
OWN_FILES = 100  # what a worker holds beside connections (about 40), and some in reserve
PAUSE_S = 0.01  # where no file descriptor is left, and nobody waits who could make room

END_OF_HEAD = b"\r\n\r\n"
TLS_RECORD_HEAD_BYTES = 5  # kind, version, length
FILES_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# When the request that this thread answers was whole, by time.monotonic: before it waited for the thread.
ARRIVED_S: ContextVar[float] = ContextVar("ARRIVED_S")


def max_connections() -> int:
    """Return how many connections a worker may hold: MAX_CONNECTIONS, or fewer where file descriptors are short."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, files - OWN_FILES - MAX_LINGERING))


def has_gone(caller: socket.socket) -> bool:
    """Return whether whoever is at the other end has closed the connection, or his half of it."""
    try:
        return not _peek(caller, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _peek(sock: socket.socket, limit: int, flags: int = 0) -> bytes:
    """Return what has come and is yet to be read, past TLS, whose own `recv` can't do it."""
    return socket.socket.recv(sock, limit, socket.MSG_PEEK | flags)


class Connection(TConn):
    """One caller; `worker` closes it."""

    def __init__(self, worker: "PatientWorker", cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.data_ready = True  # before any thread sees it
        self.arrived_s = 0.0
        self._worker = worker
        self._seen = 0  # bytes of the head that is incomplete

    @property
    def head_is_too_large(self) -> bool:
        """Whether MAX_HEAD_BYTES have come without an end."""
        return self._seen >= MAX_HEAD_BYTES

    def has_work(self) -> bool:
        """Return whether a thread has something to do: a whole head, one too large, or a caller who has closed.

        Else the socket is readable again once more bytes have come: what has is left in the kernel.
        """
        try:
            came = _peek(self.sock, MAX_HEAD_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True
        before, self._seen = self._seen, 0
        whole = _is_whole_record(came) if self.cfg.is_ssl else END_OF_HEAD in came
        if not whole:
            self._seen = len(came)
            whole = len(came) == before or self.head_is_too_large
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 if whole else self._seen + 1)
        return whole

    def close(self, graceful: bool = False) -> None:
        """Close, or with `graceful` have the worker do so once the caller has."""
        if graceful:
            self._worker.linger(self.sock)
        else:
            super().close()


def _is_whole_record(came: bytes) -> bool:
    """Return whether TLS can begin with `came`; what is none of its handshakes it refuses by itself."""
    if len(came) < TLS_RECORD_HEAD_BYTES:
        return False
    return len(came) >= TLS_RECORD_HEAD_BYTES + int.from_bytes(came[3:5], "big") or len(came) >= MAX_HEAD_BYTES


class PatientWorker(ThreadWorker):
    """A gthread worker whose threads only ever see whole heads, for a limited time.

    Its `app.settings` says how long the longest request takes. With all connections taken, those that have waited
    longest without a request make room.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lingering: dict[socket.socket, float] = {}  # and until when, soonest first
        self._lock = threading.Lock()  # guards what follows
        self._held: dict[Connection, float] = {}  # by a thread, and until when they may be

    def cfg_for(self, server: Any) -> Any:
        """Return the configuration for callers of the listening address `server`."""
        return self.cfg

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, and wait for its request."""
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in FILES_SHORT:
                if not self._make_room():
                    time.sleep(PAUSE_S)  # rather than ask again at once, and again
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        server = listener.getsockname()
        conn = Connection(self, self.cfg_for(server), sock, address, server)
        conn.timeout = time.monotonic() + HEAD_TIMEOUT_S
        self.pending_conns.append(conn)
        self.poller.register(sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Connection, client: Any) -> None:
        """Have a thread answer a new caller once his request's head is there."""
        if conn.has_work():
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Connection, client: Any) -> None:
        """Likewise for one who has been answered before; until then he has what is left of the time to be idle."""
        if conn.has_work():
            super().on_client_socket_readable(conn, client)

    def enqueue_req(self, conn: Connection) -> None:
        """Have a thread answer what has come over `conn`."""
        conn.arrived_s = time.monotonic()
        super().enqueue_req(conn)

    def handle(self, conn: Connection) -> Any:
        """Answer one request, in a thread."""
        self._hold(conn, HEAD_TIMEOUT_S)
        ARRIVED_S.set(conn.arrived_s)
        try:
            if conn.head_is_too_large:
                conn.sock.setblocking(True)
                self.handle_error(None, conn.sock, conn.client, LimitRequestHeaders("no end of the head"))
                return False
            return super().handle(conn)
        finally:
            with self._lock:
                del self._held[conn]

    def handle_request(self, req: Any, conn: Connection) -> Any:
        """Answer a request whose head is read."""
        self._hold(conn, self.app.settings.predict_timeout_s + SEND_TIMEOUT_S)
        # Nobody here reads a body. gunicorn would wait for it, in order to keep the connection.
        if any(name in ("CONTENT-LENGTH", "TRANSFER-ENCODING") for name, _ in req.headers):
            req.force_close()
        return super().handle_request(req, conn)

    def _hold(self, conn: Connection, limit_s: float) -> None:
        with self._lock:
            self._held[conn] = time.monotonic() + limit_s

    def murder_pending(self) -> None:
        """End whatever has had its time; gunicorn calls this after all that has happened, and once a second."""
        super().murder_pending()
        now_s = time.monotonic()
        with self._lock:
            for conn in [conn for conn, until_s in self._held.items() if until_s <= now_s]:
                self._held[conn] = float("inf")
                _shut(conn.sock)  # which wakes the thread
        for sock, until_s in list(self._lingering.items()):
            if until_s > now_s and len(self._lingering) <= MAX_LINGERING:
                break
            self._end(sock)
        if self.nr_conns >= self.worker_connections:
            self._make_room()

    def _make_room(self) -> bool:
        """Close a tenth, but at least one, of those who have yet to ask, or else to ask again; False without any."""
        waiting: deque[Connection] = self.pending_conns or self.keepalived_conns
        closed: int = min(len(waiting), self.worker_connections // 10 + 1)
        for _ in range(closed):
            conn = waiting.popleft()
            self.poller.unregister(conn.sock)
            self.nr_conns -= 1
            conn.close()
        return closed > 0

    def linger(self, sock: socket.socket) -> None:
        """Say that nothing more comes, and close `sock` once the other end has, or after LINGER_S."""
        try:
            sock.setblocking(False)
            socket.socket.shutdown(sock, socket.SHUT_WR)
        except OSError:  # it has gone already
            sock.close()
            return
        self.poller.register(sock, selectors.EVENT_READ, self._discard)
        self._lingering[sock] = time.monotonic() + LINGER_S

    def _discard(self, sock: socket.socket) -> None:
        try:
            came = socket.socket.recv(sock, 2**16)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        del self._lingering[sock]
        self.poller.unregister(sock)
        sock.close()

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take connections or not; when about to end, take those that have come, and free the port for a successor."""
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                before = -1
                while self.nr_conns != before:
                    before = self.nr_conns
                    self.accept(listener)
                listener.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """Give who has yet to ask no longer than those who may ask again; gunicorn calls this once it is to end."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has gone already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # past TLS, which another thread may be in the middle of
