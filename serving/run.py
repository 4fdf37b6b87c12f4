"""Model server and gateway on one machine, the command of `make run`."""

import contextlib
import ctypes
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from serving.model_server.versions import version_folders
from serving.rendering.query import EXAMPLE_SEEDS
from serving.runtime.output import write_error, write_line
from serving.runtime.ports import address_of, listen, with_port
from serving.runtime.security import check_tls
from serving.settings import Settings, SettingsError

READY_TIMEOUT_S = 120.0  # TensorFlow and the model take 5 to 10 s, on a busy machine more than 60
POLL_INTERVAL_S = 0.2
MAX_WORKERS = 4  # 75 MB each
PROBE_TIMEOUT_S = 2.0  # the gateway waits for the model server for at most 1 s
DRAIN_MARGIN_S = 10.0  # to end one child, on top of the longest request

PR_SET_PDEATHSIG = 1  # from linux/prctl.h

# glibc keeps freed memory: after a hundred images of 1024 x 1024, a worker held 260 MB without these, 90 with them.
# Dockerfile.serve sets the same.
ALLOCATOR = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Children = dict[str, subprocess.Popen[bytes]]  # by name, in the order of their start


class RunError(Exception):
    """A child has ended or is not ready in time."""


def run(settings: Settings) -> int:
    """Run model server and gateway until a signal, or until one ends.

    Returns 0 after SIGINT or SIGTERM, 1 if a child ended or was not ready in time. Raises SettingsError before
    anything is started.
    """
    check_tls(settings)
    name = settings.host
    settings = _with_addresses(settings)
    _require_model(settings)
    children: Children = {}
    try:
        # TensorFlow Serving needs it; the embedded model server sets it itself.
        children["model server"] = _start(model_server_command(settings), {"TF_ENABLE_ONEDNN_OPTS": "1"} | os.environ)
        host, port = settings.model_server_address
        _wait_until(lambda: _listens(reachable(host), port), children)  # once it has loaded a version
        command = [sys.executable, "-m", "serving", "gateway"]
        children["gateway"] = _start(command, gateway_environment(settings, os.environ))
        _wait_until(lambda: _is_ready(settings), children)
        # The certificate may have the name only.
        _announce(settings if settings.tls_certificate is None else replace(settings, host=name))
        while True:
            _require_alive(children)
            time.sleep(POLL_INTERVAL_S)
    except KeyboardInterrupt:
        return 0
    except RunError as error:
        write_error(str(error))
        return 1
    finally:
        _end(children, timeout_s=settings.predict_timeout_s + DRAIN_MARGIN_S)


def _with_addresses(settings: Settings) -> Settings:
    """Return `settings` with addresses for names; or raise SettingsError.

    A name may have several addresses, and other programs may listen on some of them.
    """
    host, port = settings.model_server_address
    # All at once, so that no two are equal.
    with (
        listen(settings.host, settings.port, variable="RINGO_PORT") as gateway,
        listen(settings.host, settings.metrics_port, variable="RINGO_METRICS_PORT"),
        listen(
            host, port, variable="RINGO_MODEL_SERVER", host_variable="The host in RINGO_MODEL_SERVER"
        ) as model_server,
    ):
        addresses = address_of(gateway), address_of(model_server)
    return replace(settings, host=addresses[0], model_server=with_port(addresses[1], port))


def _require_model(settings: Settings) -> None:
    """Raise SettingsError without a version: TensorFlow Serving would wait silently."""
    folder = settings.model_base_path
    with contextlib.suppress(OSError):
        if version_folders(folder):
            return
    raise SettingsError("RINGO_MODEL_BASE_PATH", str(folder), "a folder with numbered versions of the model in it")


def model_server_command(settings: Settings) -> list[str]:
    """Return the command of TensorFlow Serving, else of the embedded model server."""
    host, port = settings.model_server_address
    base_path = settings.model_base_path.resolve()  # TensorFlow Serving takes no relative path
    genuine = shutil.which("tensorflow_model_server")
    if genuine is not None:
        write_line(
            f"Model server: {genuine}. It listens on all interfaces without authentication; "
            f"block port {port} for other machines."
        )
        return [
            genuine,
            f"--port={port}",
            f"--model_name={settings.model_name}",
            f"--model_base_path={base_path}",
            "--grpc_max_threads=64",  # the default, 4 per core, refused 302 of 400 calls of 8 clients on 2 cores
            "--max_num_load_retries=0",  # by default a broken version blocks all later ones for minutes
            "--tensorflow_intra_op_parallelism=1",  # with more, images depend on the size of their batch
            "--enable_serialization_as_tensor_content=true",  # typed fields take four times a client's CPU
        ]
    write_line("Model server: the embedded one, because tensorflow_model_server is not on the PATH")
    return [
        *(sys.executable, "-m", "serving", "model-server"),
        *("--host", host, "--port", str(port)),
        *(f"--model_name={settings.model_name}", f"--model_base_path={base_path}"),
        *("--log-format", settings.log_format, "--enable_serialization_as_tensor_content"),
    ]


def gateway_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the gateway's environment: `environ`, with defaults for one machine.

    One worker per core: two on two cores serve 1.8 times as many cached images as one. They share the model calls.
    """
    host, port = settings.model_server_address
    addresses = {"RINGO_HOST": settings.host, "RINGO_MODEL_SERVER": with_port(reachable(host), port)}
    workers = settings.workers if "RINGO_WORKERS" in environ else min(os.cpu_count() or 1, MAX_WORKERS)
    calls = max(1, settings.model_calls // workers)
    return {"RINGO_WORKERS": str(workers), "RINGO_MODEL_CALLS": str(calls), **ALLOCATOR, **environ, **addresses}


def _start(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a child that Ctrl-C does not reach; it ends with this process."""
    die_with_parent = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
    return subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, env=environ)


def _require_alive(children: Children) -> None:
    for name, child in children.items():
        status = child.poll()
        if status is not None:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise RunError(f"The {name} {how}; read the log lines above.")


def reachable(host: str) -> str:
    """Return a local client's address of a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _wait_until(passed: Callable[[], bool], children: Children) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not passed():
        _require_alive(children)
        if time.monotonic() > deadline:
            raise RunError(f"No version of the model was ready within {READY_TIMEOUT_S:g} s; read the log lines above.")
        time.sleep(POLL_INTERVAL_S)
    _require_alive(children)  # else the answer came from another program's server


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
        return True
    return False


def _is_ready(settings: Settings) -> bool:
    if settings.tls_certificate is not None:  # a probe over TLS may need a client certificate
        return _listens(reachable(settings.host), settings.metrics_port)
    connection = http.client.HTTPConnection(reachable(settings.host), settings.metrics_port, timeout=PROBE_TIMEOUT_S)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    return False


def _announce(settings: Settings) -> None:
    certificate = settings.tls_certificate
    scheme = "http" if certificate is None else "https"
    url = f"{scheme}://{with_port(reachable(settings.host), settings.port)}/generate?seed={EXAMPLE_SEEDS[0]}"
    file = shlex.quote(f"{settings.model_name}.png")
    options = "" if certificate is None else f" --cacert {shlex.quote(str(certificate))}"
    options += "" if settings.tls_client_ca is None else " --cert client.crt --key client.key"
    options += "" if settings.token is None else ' -H "Authorization: Bearer $RINGO_TOKEN"'
    write_line(f"Ready: {url}\n  curl{options} '{url.removeprefix('http://')}' -o {file}\nCtrl-C ends both servers.")


def _end(children: Children, *, timeout_s: float) -> None:
    """End the gateway first: it needs the model server to drain."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for child in reversed(children.values()):
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and children of its own
        child.wait()
