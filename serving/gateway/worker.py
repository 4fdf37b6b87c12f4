"""A worker of gunicorn that no caller can hold up: who is slow to ask, or to read, takes no thread, and has a limit.

gunicorn's own gives a thread to every new connection, for five seconds if nothing comes, and without a limit to one
that sends half a request or doesn't read its answer; and its loop waits two seconds for each caller that doesn't close.
A few hundred of any of them stop it.
"""

import contextlib
import errno
import resource
import select
import selectors
import socket
import struct
import threading
import time
from contextvars import ContextVar
from functools import partial
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.workers.gthread import TConn, ThreadWorker

from serving.gateway.caller_socket import CallerSocket
from serving.runtime.memory import give_back

HEAD_TIMEOUT_S = 10.0  # from the connection to the end of the request's head
# For the next request, in a thread, where there is one for each caller: by way of the loop two would be woken for each.
STAY_S = 0.01
# Between connections that come together, for the other workers to take some. Without it one took all 16 of a load in 15
# of 40, and answered at half the speed of two for as long as they were kept.
SPREAD_S = 0.0002
SEND_TIMEOUT_S = 30.0  # for the answer to leave: 3 MB at 1 Mbit/s take 25 s
MAX_UNSENT_BYTES = 2**24  # of all that are about to leave: five of the largest answers, hundreds of pictures
LINGER_S = 2.0  # for the caller to close first, so that what he still sends doesn't cost him the end of the answer
MAX_HEAD_BYTES = 2**15  # as much as nginx takes
MAX_CONNECTIONS = 1000
MAX_LINGERING = 100
OWN_FILES = 100  # what a worker holds beside connections (about 40), and some in reserve
PAUSE_S = 0.01  # where no file descriptor is left, and nobody waits who could make room

END_OF_HEAD = b"\r\n\r\n"
TLS_RECORD_HEAD_BYTES = 5  # kind, version, length
TLS_RECORD_KINDS = range(20, 25)  # RFC 8446, B.1, and heartbeats
ABORT = struct.pack("ii", 1, 0)  # of SO_LINGER: on, for no time
FILES_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# When the request that this thread answers was whole, by time.monotonic: before it waited for the thread.
ARRIVED_S: ContextVar[float] = ContextVar("ARRIVED_S")


def max_connections() -> int:
    """Return how many connections a worker may hold: MAX_CONNECTIONS, or fewer where file descriptors are short."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, files - OWN_FILES - MAX_LINGERING))


class Connection(TConn):
    """One caller; `worker` closes it."""

    def __init__(self, worker: "PatientWorker", cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.data_ready = True  # before any thread sees it
        self.arrived_s = 0.0
        self._worker = worker
        self._seen = 0  # bytes of the head that is incomplete
        self._low_water = 1  # bytes from which on the socket is readable

    @property
    def sock(self) -> CallerSocket:
        """The socket; gunicorn sets another one when TLS has taken it over."""
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        self._sock = CallerSocket(sock, waits=self.cfg.is_ssl)

    @property
    def head_is_too_large(self) -> bool:
        """Whether MAX_HEAD_BYTES have come without an end."""
        return self._seen >= MAX_HEAD_BYTES

    def has_work(self) -> bool:
        """Return whether a thread has something to do: a whole head, one too large, or a caller who has closed.

        Else the socket is readable again once more bytes have come: what has is left in the kernel, as is what may have
        come after a head. A thread that had read the beginning of another would wait for the rest.
        """
        try:
            came = self.sock.peek(MAX_HEAD_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True
        before, self._seen = self._seen, 0
        if self.cfg.is_ssl:
            whole = _is_whole_record(came)
        else:
            end = came.find(END_OF_HEAD)
            whole = end >= 0
            self.sock.read_first(end + len(END_OF_HEAD) if whole else 0)
        if not whole:
            self._seen = len(came)
            whole = len(came) == before or self.head_is_too_large
        low_water = 1 if whole else self._seen + 1
        if low_water != self._low_water:
            self._low_water = low_water
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
        return whole

    def asks_again(self) -> bool:
        """Wait up to STAY_S for another request; return as `has_work` does."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(STAY_S * 1000)) and self.has_work()

    def close(self, graceful: bool = False) -> None:
        """Close, or with `graceful` have the worker do so once the caller has."""
        if graceful:
            self._worker.linger(self.sock)
        else:
            super().close()


def _is_whole_record(came: bytes) -> bool:
    """Return whether TLS can begin with `came`, or refuse it: HTTP, for one."""
    if came and came[0] not in TLS_RECORD_KINDS:
        return True
    if len(came) < TLS_RECORD_HEAD_BYTES:
        return False
    return len(came) >= TLS_RECORD_HEAD_BYTES + int.from_bytes(came[3:5], "big") or len(came) >= MAX_HEAD_BYTES


class PatientWorker(ThreadWorker):
    """A gthread worker whose threads only ever see whole heads, and wait for no caller to read what they answer.

    With all connections taken, those that have waited longest make room.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lingering: dict[CallerSocket, float] = {}  # and until when, soonest first
        self._leaving: dict[Connection, float] = {}  # whose answer is yet to be read, and until when, soonest first
        self._files_short = False  # so somebody is to make room
        self._accepted_s = 0.0  # when the last connection was taken, by time.monotonic
        self._lock = threading.Lock()  # guards what follows
        self._held: dict[Connection, float] = {}  # by a thread, and until when they may be

    def cfg_for(self, server: Any) -> Any:
        """Return the configuration for callers of the listening address `server`."""
        return self.cfg

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, and wait for its request."""
        early_s = self._accepted_s + SPREAD_S - time.monotonic()
        # With more than there are threads each has enough. No sleep where none is due: it lets go of the GIL.
        if early_s > 0 and self.cfg.workers > 1 and 0 < self.nr_conns < self.cfg.threads:
            time.sleep(early_s)
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in FILES_SHORT:
                self._files_short = True
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self._accepted_s = time.monotonic()
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
        """Answer a request, in a thread, and whatever follows within STAY_S of an answer."""
        keep = self._answer(conn)
        while keep and self._can_stay(conn) and conn.asks_again():
            conn.arrived_s = time.monotonic()
            keep = self._answer(conn)
        return keep

    def _can_stay(self, conn: Connection) -> bool:
        """Return whether a thread may wait for the next request: all has been sent, and nobody needs the thread."""
        has_read_ahead = conn.parser.unreader.buf.getvalue()
        return self.alive and self.nr_conns <= self.cfg.threads and not (conn.sock.unsent_bytes or has_read_ahead)

    def _answer(self, conn: Connection) -> Any:
        """Answer one request, and return whether the connection may be kept."""
        self._hold(conn, HEAD_TIMEOUT_S)
        ARRIVED_S.set(conn.arrived_s)
        try:
            if conn.head_is_too_large:
                self.handle_error(None, conn.sock, conn.client, LimitRequestHeaders("no end of the head"))
                keep = False
            else:
                keep = super().handle(conn)
        finally:
            self._release(conn)
        try:
            conn.sock.flush()
            decrypted = conn.sock.decrypted_bytes
            if keep and decrypted and not conn.parser.unreader.buf.getvalue():  # nothing would tell the loop of it
                conn.parser.unreader.unread(conn.sock.recv(decrypted))
        except OSError:  # he has gone
            return False
        return keep

    def handle_request(self, req: Any, conn: Connection) -> Any:
        """Answer a request whose head is read; from here on nothing waits for the caller."""
        self._release(conn)
        for name, text in req.headers:
            # gunicorn knows a header that says this and no more, and the first of several.
            wants_end = name == "CONNECTION" and "close" in [option.strip().lower() for option in text.split(",")]
            # Nobody here reads a body. gunicorn would wait for it, in order to keep the connection.
            # Some say that there is none.
            has_body = name in ("CONTENT-LENGTH", "TRANSFER-ENCODING") and text != "0"
            if wants_end or has_body:
                req.force_close()
        return super().handle_request(req, conn)

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """Return whether the connection may be kept. No body is left to be read then: who sends one is not kept."""
        return keepalive

    def _hold(self, conn: Connection, limit_s: float) -> None:
        with self._lock:
            self._held[conn] = time.monotonic() + limit_s

    def _release(self, conn: Connection) -> None:
        with self._lock:
            self._held.pop(conn, None)

    def finish_request(self, conn: Connection, answered: Any) -> None:
        """Have the rest of an answer leave as its caller reads it, and only then see to his next request."""
        if not conn.sock.unsent_bytes:
            super().finish_request(conn, answered)
            return
        self._leaving[conn] = time.monotonic() + SEND_TIMEOUT_S
        self.poller.register(conn.sock, selectors.EVENT_WRITE, partial(self._send_on, conn, answered))

    def _send_on(self, conn: Connection, answered: Any, caller: CallerSocket) -> None:
        try:
            caller.flush()
        except OSError:
            self._drop(conn)
            return
        if not caller.unsent_bytes:
            del self._leaving[conn]
            self.poller.unregister(caller)
            super().finish_request(conn, answered)

    def murder_pending(self) -> None:
        """End whatever has had its time, or is too much; gunicorn calls this after all that has happened.

        And once a second. Only here are connections closed that something may have happened to, too.
        """
        super().murder_pending()
        now_s = time.monotonic()
        with self._lock:
            for conn in [conn for conn, until_s in self._held.items() if until_s <= now_s]:
                self._held[conn] = float("inf")
                with contextlib.suppress(OSError):  # it has gone already
                    conn.sock.shut(socket.SHUT_RDWR)  # which wakes the thread
        unsent_bytes, left = sum(conn.sock.unsent_bytes for conn in self._leaving), len(self._leaving)
        for conn, until_s in list(self._leaving.items()):
            if until_s > now_s and unsent_bytes <= MAX_UNSENT_BYTES:
                break
            unsent_bytes -= conn.sock.unsent_bytes
            self._drop(conn)  # whoever reads at all is rarely the one who takes longest
        if len(self._leaving) < left:
            give_back()  # or the allocator keeps up to twice as much as they had
        for sock, until_s in list(self._lingering.items()):
            if until_s > now_s and len(self._lingering) <= MAX_LINGERING:
                break
            self._end(sock)
        if self._files_short or self.nr_conns >= self.worker_connections:
            made_room = self._make_room()
            if self._files_short and not made_room:
                time.sleep(PAUSE_S)  # rather than try again at once, and again
            self._files_short = False

    def _make_room(self) -> bool:
        """Close a tenth, the oldest, of those who have yet to ask, ask again, or read: whichever are most.

        Return False if there are none.
        """
        waited_for: tuple[list[Connection], ...]
        waited_for = list(self.pending_conns), list(self.keepalived_conns), list(self._leaving)
        most = max(waited_for, key=len)
        for conn in most[: self.worker_connections // 10 + 1]:
            self._drop(conn)
        return bool(most)

    def _drop(self, conn: Connection) -> None:
        """Close the connection of one who is waited for."""
        if conn in self._leaving:
            del self._leaving[conn]
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)  # nor does the system go on sending
        elif conn in self.pending_conns:
            self.pending_conns.remove(conn)
        else:
            self.keepalived_conns.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def linger(self, sock: CallerSocket) -> None:
        """Say that nothing more comes, and close `sock` once the other end has, or after LINGER_S."""
        try:
            sock.setblocking(False)
            sock.shut(socket.SHUT_WR)
        except OSError:  # it has gone already
            sock.close()
            return
        self.poller.register(sock, selectors.EVENT_READ, self._discard)
        self._lingering[sock] = time.monotonic() + LINGER_S

    def _discard(self, sock: CallerSocket) -> None:
        if not sock.discard():
            self._end(sock)

    def _end(self, sock: CallerSocket) -> None:
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
