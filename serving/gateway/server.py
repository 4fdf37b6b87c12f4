"""The gateway under gunicorn: its own configuration, no command line and no configuration file."""

import copy
import gc
import json
import math
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders, LimitRequestLine, ParseException

from serving.gateway.worker import ARRIVED_S, PatientWorker, max_connections
from serving.runtime.memory import keep_little
from serving.runtime.ports import handed_over, listen
from serving.runtime.security import check_tls
from serving.settings import Settings
from serving.telemetry.logs import LineHandler
from serving.telemetry.logs import configure as configure_logging

SHARED_MEMORY = Path("/dev/shm")
KEEPALIVE_S = 75  # longer than the 60 s of nginx and most load balancers: the side that sends must be the one to close
DRAIN_MARGIN_S = 5  # on top of the longest request
SPARE_THREADS = 16  # beside those that wait for the model: for what is kept, 304, pages, probes, and refusals

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]  # of WSGI


def serve(settings: Settings) -> None:
    """Answer HTTP until a signal ends it: SIGTERM after the requests in flight, SIGINT at once.

    Raises SettingsError if a port is not to be had, or a file of TLS.
    """
    check_tls(settings)
    # gunicorn would try a taken port five times, with a log line each: it gets sockets that listen already.
    listeners = [
        handed_over(port) or listen(settings.host, port, variable=variable, value=str(port))
        for variable, port in (("RINGO_PORT", settings.port), ("RINGO_METRICS_PORT", settings.metrics_port))
    ]
    for name in ("LISTEN_PID", "LISTEN_FDS"):  # gunicorn would take them for all there is
        os.environ.pop(name, None)
    # Where the workers keep their counts; serving/telemetry/metrics.py is imported after this, in each of them.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="ringo-metrics-", dir=_shared_memory())
    _Gunicorn(settings, listeners, configure_logging(settings.log_format)).run()


def _shared_memory() -> Path | None:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else None


class _Gunicorn(BaseApplication):
    def __init__(self, settings: Settings, listeners: list[socket.socket], lines: LineHandler) -> None:
        self.settings = settings
        self._lines = lines
        # gunicorn's from here on: it closes them to refuse when it drains
        self._listener_fds = [listener.detach() for listener in listeners]
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": [f"fd://{fd}" for fd in self._listener_fds],
            "worker_class": _ProblemWorker,
            "workers": self.settings.workers,
            "threads": self.settings.max_in_flight + SPARE_THREADS,
            "worker_connections": max_connections(),
            "keepalive": KEEPALIVE_S,
            "graceful_timeout": math.ceil(self.settings.predict_timeout_s) + DRAIN_MARGIN_S,
            "certfile": _text(self.settings.tls_certificate),
            "keyfile": _text(self.settings.tls_key),
            "ca_certs": _text(self.settings.tls_client_ca),
            "cert_reqs": ssl.CERT_NONE if self.settings.tls_client_ca is None else ssl.CERT_REQUIRED,
            # It would go past what is kept until the answer is whole (CallerSocket), so the head would come last.
            "sendfile": False,
            # The heartbeat is a file: on a disk that stalls, healthy workers would be killed for it.
            "worker_tmp_dir": _shared_memory() and str(_shared_memory()),
            "logger_class": _Log,
            "errorlog": None,  # but what everybody else logs to
            "child_exit": _forget_worker,
            "on_exit": _remove_counts,
            # Nothing here depends on what a proxy says, and a caller on this machine would be taken for one: gunicorn
            # takes SCRIPT_NAME, another path than the URL's, from the headers of those it trusts.
            "forwarded_allow_ips": "",
            # A remote control by a socket in $HOME, on by default: nobody here speaks to it.
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        """Return the application; gunicorn calls this in each worker, after the fork, as channels need it."""
        keep_little()
        from serving.gateway.app import PROBES, create_app
        from serving.telemetry.metrics import build_metrics_app
        from serving.telemetry.tracing import export_traces

        self._lines.gather()
        export_traces("gateway")
        gateway, metrics, metrics_port = create_app(self.settings), build_metrics_app(), self.settings.metrics_port
        gc.freeze()  # what is there by now stays: a look at all of it takes 20 ms

        def by_port(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ["ringo.arrived_s"] = ARRIVED_S.get()
            # Probes are answered on either: the metrics' port is plain, and a kubelet has no certificate to show.
            private = environ["SERVER_PORT"] == str(metrics_port) and environ["PATH_INFO"] not in PROBES
            return (metrics if private else gateway)(environ, start_response)

        return by_port


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _forget_worker(arbiter: Any, worker: Any) -> None:
    """Let what only a living worker can say end with it; gunicorn calls this in its first process."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _remove_counts(arbiter: Any) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


class _Log(glogging.Logger):
    """gunicorn's own lines, in our format."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.error_log.propagate = True


class _ProblemWorker(PatientWorker):
    """A worker that answers what never reaches the application with problems, too, not with pages of HTML.

    TLS is for the gateway's port alone, where gunicorn knows it for all ports or none.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._plain = copy.deepcopy(self.cfg)
        for name in ("certfile", "keyfile"):
            self._plain.set(name, None)

    def cfg_for(self, server: Any) -> Any:
        """Return the configuration for callers of the address `server`: of TLS if it says so."""
        return self._plain if server[1] == self.app.settings.metrics_port else self.cfg

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        if isinstance(exc, ssl.SSLError):  # no TLS, or none of ours: there is no channel to answer through
            self.log.info("A caller came without our TLS: %s", exc.reason)
            return
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
        from serving.telemetry.request_log import UNREADABLE, record_request

        with record_request("-", {}) as record:
            if status < 500:
                record.outcome = UNREADABLE
            record.status = status.value
        if isinstance(exc, InvalidRequestLine):  # curl sends 'seed=りんご' as it is
            detail = (
                "The request line is not valid; allowed is a method, a path that begins with / and in which whatever "
                "is not printable ASCII is percent-encoded, and a version of HTTP."
            )
        from serving.gateway.app import EVERYWHERE  # after the fork, as in `load`

        members = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail}
        body = json.dumps(members | {"request_id": record.request_id})
        headers = EVERYWHERE | {
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(body)),
            "X-Request-ID": record.request_id,
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        lines = (f"HTTP/1.1 {status:d} {status.phrase}", *(f"{name}: {text}" for name, text in headers.items()), "", "")
        client.sendall(("\r\n".join(lines) + body).encode("ascii"))
