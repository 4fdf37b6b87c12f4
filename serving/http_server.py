"""The gateway under gunicorn: its own configuration, no command line and no configuration file."""

import json
import math
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

from serving.gateway import create_app
from serving.ports import listen
from serving.settings import Settings

SHARED_MEMORY = Path("/dev/shm")
KEEPALIVE_S = 75  # longer than the 60 s of nginx and most load balancers: the side that sends must be the one to close
DRAIN_MARGIN_S = 5  # on top of the longest request


def serve(settings: Settings) -> None:
    """Answer HTTP until a signal ends it: SIGTERM after the requests in flight, SIGINT at once.

    Raises SettingsError if the port is not to be had.
    """
    # gunicorn would try a taken port five times, with a log line each: it gets a socket that listens already.
    listener = listen(settings.host, settings.port, variable="RINGO_PORT", value=str(settings.port))
    _Gunicorn(settings, listener).run()


class _Gunicorn(BaseApplication):
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener_fd = listener.detach()  # gunicorn's from here on: it closes it to refuse when it drains
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": f"fd://{self._listener_fd}",
            "worker_class": _ProblemWorker,
            "workers": self._settings.workers,
            "threads": self._settings.threads,
            "keepalive": KEEPALIVE_S,
            "graceful_timeout": math.ceil(self._settings.predict_timeout_s) + DRAIN_MARGIN_S,
            # The heartbeat is a file: on a disk that stalls, healthy workers would be killed for it.
            "worker_tmp_dir": str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
            # A remote control by a socket in $HOME, on by default: nobody here speaks to it.
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the application; gunicorn calls this in each worker, after the fork, as channels need it."""
        return create_app(self._settings)


class _ProblemWorker(ThreadWorker):
    """A gthread worker that answers what never reaches the application with problems, too, not with pages of HTML."""

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        if isinstance(exc, LimitRequestLine):
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        elif isinstance(exc, LimitRequestHeaders):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        elif isinstance(exc, ParseException):
            status = HTTPStatus.BAD_REQUEST
        else:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            self.log.exception("The gateway failed before its application could answer.")
        detail = status.description
        if isinstance(exc, InvalidRequestLine):  # curl sends 'seed=りんご' as it is
            detail = "The request line is not valid: whatever is not ASCII has to be percent-encoded."
        body = json.dumps({"type": "about:blank", "title": status.phrase, "status": status, "detail": detail})
        head = (
            f"HTTP/1.1 {status:d} {status.phrase}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        client.sendall((head + body).encode("ascii"))
