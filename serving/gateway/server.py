"""The gateway's process: gunicorn with its own `gthread` worker."""

import gc
import math
import os
import shutil
import ssl
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.app.base import BaseApplication

from serving.runtime.ports import listen
from serving.runtime.security import check_tls
from serving.settings import Settings
from serving.telemetry.logs import configure as configure_logging

SHARED_MEMORY = "/dev/shm"
KEEPALIVE_S = 75  # longer than the 60 s of nginx and most load balancers
DRAIN_MARGIN_S = 5  # on top of the longest request
SPARE_THREADS = 16  # for responses without the model: cached images, 304, pages, probes and refusals

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]  # of WSGI


def serve(settings: Settings) -> None:
    """Serve HTTP until SIGTERM, which drains requests in flight, or SIGINT.

    Raises SettingsError if a port is not free or a TLS file is not usable.
    """
    check_tls(settings)
    # gunicorn tries a taken port five times, with a log line each; this check gives one sentence.
    with (
        listen(settings.host, settings.port, variable="RINGO_PORT", value=str(settings.port)),
        listen(settings.host, settings.metrics_port, variable="RINGO_METRICS_PORT", value=str(settings.metrics_port)),
    ):
        pass
    # Workers write their counts here. serving/telemetry/metrics.py reads the variable when each worker imports it.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="ringo-metrics-", dir=SHARED_MEMORY)
    configure_logging(settings.log_format)
    _Gunicorn(settings).run()


class _Gunicorn(BaseApplication):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        options = {
            "bind": [f"{host}:{settings.port}", f"{host}:{settings.metrics_port}"],
            "worker_class": "gthread",
            "workers": settings.workers,
            "threads": settings.max_in_flight + SPARE_THREADS,
            "keepalive": KEEPALIVE_S,
            "graceful_timeout": math.ceil(settings.predict_timeout_s) + DRAIN_MARGIN_S,
            "certfile": _text(settings.tls_certificate),
            "keyfile": _text(settings.tls_key),
            "ca_certs": _text(settings.tls_client_ca),
            "cert_reqs": ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
            # The heartbeat is a file: if a disk stalls, gunicorn kills healthy workers.
            "worker_tmp_dir": SHARED_MEMORY,
            "logger_class": _Log,
            "errorlog": None,  # gunicorn's lines go to the root logger
            "child_exit": _forget_worker,
            "on_exit": _remove_counts,
            # By default, gunicorn takes SCRIPT_NAME from the headers of trusted proxies.
            "forwarded_allow_ips": "",
            "control_socket_disable": True,  # a remote control in $HOME, on by default
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        """Return the WSGI application; gunicorn calls this in each worker."""
        from serving.gateway.app import create_app
        from serving.gateway.pages import PROBES
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


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _forget_worker(arbiter: Any, worker: Any) -> None:
    """Remove the gauges of a worker that has ended; gunicorn calls this."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _remove_counts(arbiter: Any) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


class _Log(glogging.Logger):
    """Passes gunicorn's lines on to the root logger."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.error_log.propagate = True
