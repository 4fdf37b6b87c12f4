"""The gateway's process: gunicorn with its own `gthread` worker."""

import gc
import logging
import math
import shutil
import signal
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn import glogging, sock
from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders
from gunicorn.workers import gthread

from serving.runtime.limits import raise_open_files
from serving.runtime.ports import BACKLOG, listen
from serving.runtime.security import check_tls
from serving.settings import Settings
from serving.telemetry import worker_files
from serving.telemetry.logs import configure as configure_logging

log = logging.getLogger(__name__)

KEEPALIVE_S = 75  # longer than the 60 s of nginx and most load balancers
DRAIN_MARGIN_S = 5  # on top of the longest request
SPARE_THREADS = 16  # for responses without the model: cached images, 304, pages, probes and refusals
MAX_CONNECTIONS, MIN_CONNECTIONS = 1000, 16  # of a worker
IDLE_FILES = 48  # open in an idle worker: 26, more with a trace collector


def serve(settings: Settings) -> None:
    """Serve HTTP until SIGTERM, which drains requests in flight, or SIGINT.

    Raises SettingsError if a port is not free or a TLS file is not usable.
    """
    check_tls(settings)
    others = IDLE_FILES + 2 * settings.workers  # two are of gunicorn, for each worker
    threads = settings.max_in_flight + SPARE_THREADS
    files = raise_open_files(others + MIN_CONNECTIONS, others + MAX_CONNECTIONS + threads) - others
    # gunicorn itself would try a taken port five times, with a log line each.
    sockets = [
        listen(settings.host, settings.port, variable="RINGO_PORT"),
        listen(settings.host, settings.metrics_port, variable="RINGO_METRICS_PORT"),
    ]
    folder = worker_files.create_folder(settings.workers)
    configure_logging(settings.log_format)
    options = {
        "bind": [f"fd://{listener.detach()}" for listener in sockets],
        "backlog": BACKLOG,
        "worker_connections": max(files - threads, files // 2),  # one that waits in a thread has two files
        "worker_class": ThreadWorker,
        "workers": settings.workers,
        "threads": threads,
        "keepalive": KEEPALIVE_S,
        "graceful_timeout": math.ceil(settings.predict_timeout_s) + DRAIN_MARGIN_S,
        "certfile": settings.tls_certificate,
        "keyfile": settings.tls_key,
        "ca_certs": settings.tls_client_ca,
        "cert_reqs": ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
        "ssl_context": _keep_usable(),
        # The heartbeat is a file: if a disk stalls, gunicorn kills healthy workers. It is not in the folder itself,
        # which systemd removes when its user logs out.
        "worker_tmp_dir": folder.parent,
        "logger_class": _Log,
        "errorlog": None,  # gunicorn's lines go to the root logger
        "when_ready": _prepare,
        "pre_fork": _number,
        "post_fork": lambda arbiter, worker: worker_files.use(folder, worker.number),
        "post_worker_init": lambda worker: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # of a terminal that is closed
        "on_exit": lambda arbiter: shutil.rmtree(folder, ignore_errors=True),
        # By default, gunicorn takes SCRIPT_NAME from the headers of trusted proxies.
        "forwarded_allow_ips": "",
        "control_socket_disable": True,  # a remote control in $HOME, on by default
    }
    _Gunicorn(settings, options).run()


class _Gunicorn(BaseApplication):
    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self.settings = settings
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            self.cfg.set(name, str(value) if isinstance(value, Path) else value)

    def load(self) -> Callable[..., Iterable[bytes]]:
        """Return the WSGI application; gunicorn calls this in each worker."""
        from serving.gateway.app import create_app
        from serving.gateway.openapi import PROBES
        from serving.telemetry.metrics import build_metrics_app
        from serving.telemetry.tracing import export_traces

        export_traces("gateway")
        gateway, metrics, metrics_port = create_app(self.settings), build_metrics_app(), str(self.settings.metrics_port)
        gc.freeze()  # a collection of the objects so far takes 20 ms

        def by_port(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            """Serve metrics and the gateway by port, and probes on both."""
            private = environ["SERVER_PORT"] == metrics_port and environ["PATH_INFO"] not in PROBES
            return (metrics if private else gateway)(environ, start_response)

        return by_port


def _number(arbiter: Any, worker: Any) -> None:
    """Give `worker` the lowest free number; gunicorn calls this before the fork."""
    taken = {other.number for other in arbiter.WORKERS.values()}
    worker.number = min(set(range(len(taken) + 1)) - taken)


def _keep_usable() -> Callable[[Any, Callable[[], ssl.SSLContext]], ssl.SSLContext]:
    """Return gunicorn's hook for each TLS connection: while renewed files are not usable, the last ones stay."""
    last: list[ssl.SSLContext] = []

    def context(_config: Any, build: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        try:
            last[:] = [build()]
        except OSError as error:  # also ssl.SSLError
            if not last:
                raise
            log.error("The TLS files are not usable (%s); the last ones stay in use.", error)
        return last[0]

    return context


def _prepare(arbiter: Any) -> None:
    """Read the TLS files for all workers; ignore signals that make gunicorn start some without files for metrics."""
    if arbiter.cfg.is_ssl:
        sock.ssl_context(arbiter.cfg)
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class ThreadWorker(gthread.ThreadWorker):
    """gunicorn's own, whose 400 and 431 responses state the remedy."""

    def handle(self, conn: Any) -> Any:
        """Answer a request, and close a connection that ends.

        gunicorn waits up to 2 s for the client to close its side, in the thread that accepts connections.
        """
        goes_on = super().handle(conn)
        if not goes_on:
            with suppress(OSError):
                conn.close(graceful=True)
            conn.close = lambda graceful=False: None
        return goes_on

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer a request that gunicorn could not read."""
        if isinstance(exc, LimitRequestHeaders):
            fields, size = self.cfg.limit_request_fields, self.cfg.limit_request_field_size
            exc = LimitRequestHeaders(f"at most {fields} header fields of {size} bytes each, with line end")
        if isinstance(exc, InvalidRequestLine) and not exc.req.isascii():  # curl sends a query as it stands
            exc = InvalidRequestLine("the URL has characters beyond ASCII; percent-encode them")
        super().handle_error(req, client, addr, exc)


class _Log(glogging.Logger):
    """Passes gunicorn's lines on to the root logger."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.error_log.propagate = True

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log `msg`; omit address and text of an invalid request."""
        super().warning("Invalid request" if msg.startswith("Invalid request") else msg, *args, **kwargs)
