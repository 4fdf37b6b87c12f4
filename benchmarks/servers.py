"""The servers under load as processes: ours, and the peers."""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load import Load, Request, put_load
from benchmarks.rounds import resume, resumed
from serving.runtime.ports import listen

READY_S = 60.0
END_S = 30.0
NOT_INHERITED = ("TF_NUM_INTRAOP_THREADS", "TF_CPP_MIN_LOG_LEVEL")  # each server sets its own
POLL_S = 0.02
RESPONSE_S = 20.0
SETTLING_S = 2.0  # at the start of a turn, not counted: other processes have used the caches and the memory
CHECKED_SEED = 42
ROOT = Path(__file__).parents[1]
GENUINE = "tensorflow_model_server"
COMMANDS = {  # the name of a process by a part of its command line
    GENUINE.encode(): "model-server",
    b"serving\0model-server": "model-server",
    b"serving\0gateway": "gateway",
    b"serving\0batch": "batch",
    b"serving\0run": "run",
    b"nginx": "nginx",
}


class NotReady(Exception):
    """A server did not respond or ended; the text is one sentence."""


@dataclass(frozen=True)
class Server:
    """A running server; times are seconds since its process started."""

    request: Request
    process: subprocess.Popen[bytes]
    first_response_s: float
    milestones_s: dict[str, float]  # of ours: the model server listens, the gateway is live
    command: str  # without the program's path

    def pids(self) -> list[int]:
        """Return its processes, parents first."""
        return descendants(self.process.pid)

    def loaded(self, **load: Any) -> Load:
        """Put a load on this server; return it with the CPU time."""
        before = cpu_s(self.pids())
        done = put_load(self.request, **load)
        responses = done.responses_a_second * load["seconds"]
        return replace(
            done, cpu_ms={name: 1e3 * (s - before[name]) / responses for name, s in cpu_s(self.pids()).items()}
        )

    def image(self, seed: int) -> bytes:
        """Return the PNG of `seed`."""
        return png_of(fetch(self.request, seed)[1])


def free_port() -> int:
    """Return a port without a listener."""
    with listen("127.0.0.1", 0, variable="") as taken:
        return int(taken.getsockname()[1])


def fetch(request: Request, seed: int, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Return response and body of one request. Raises OSError or HTTPException."""
    with closing(http.client.HTTPConnection("127.0.0.1", request.port, timeout=RESPONSE_S)) as connection:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if request.body:
            sent["Content-Type"] = "application/json"
        body = request.body.replace("SEED", str(seed)) or None
        connection.request(request.method, request.path.replace("SEED", str(seed)), body, sent)
        response = connection.getresponse()
        return response, response.read()


@contextmanager
def running(
    command: list[str],
    request: Request,
    environment: dict[str, str],
    milestones: dict[str, Callable[[], bool]],
    log: Path,
    folder: Path = ROOT,
) -> Iterator[Server]:
    """Run `command`; wait until it responds; end it after the `with` block."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        reached: dict[str, float] = {}
        while True:
            for name, is_reached in milestones.items():
                if name not in reached and is_reached():
                    reached[name] = round(time.monotonic() - begin, 2)
            if responds(request):
                break
            if process.poll() is not None or time.monotonic() - begin > READY_S:
                last = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-5:])
                raise NotReady(f"{' '.join(command[:4])} ended or did not respond within {READY_S:g} s: {last}")
            time.sleep(POLL_S)
        yield Server(request, process, round(time.monotonic() - begin, 2), reached, " ".join(command[1:]))
    finally:
        family = descendants(process.pid)
        resume(family)
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in family:  # children it left behind
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def responds(request: Request) -> bool:
    """Return whether the response to `request` is an image."""
    try:
        response, body = fetch(request, CHECKED_SEED)
    except (OSError, http.client.HTTPException):
        return False
    return response.status == 200 and png_of(body).startswith(b"\x89PNG")


def in_turn(server: Server, stopped: Sequence[int], **load: Any) -> Load:
    """Put a load on `server`; its `stopped` processes run meanwhile.

    SETTLING_S of one client are not counted. The processes stop again once all requests in flight are answered: 64 take
    Flask 5 s.
    """
    with resumed(stopped):
        server.image(CHECKED_SEED)  # the gateway reconnects, and checks the golden images
        put_load(server.request, **load | {"clients": 1, "seconds": SETTLING_S})
        done = server.loaded(**load)
        server.image(CHECKED_SEED)
        return done


def png_of(body: bytes) -> bytes:
    """Return the image in a response: the body or BentoML's base64 text."""
    return base64.b64decode(json.loads(body)[0]) if body.startswith(b"[") else body


def listens(port: int) -> bool:
    """Return whether `port` accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=RESPONSE_S).close()
    except OSError:
        return False
    return True


def is_live(port: int) -> bool:
    """Return whether the liveness probe of a gateway on `port` succeeds."""
    try:
        return fetch(Request(port, "/livez"), 0)[0].status == 200
    except (OSError, http.client.HTTPException):
        return False


def ours(model: Path, log: Path, folder: Path = ROOT, *, genuine: bool = False) -> AbstractContextManager[Server]:
    """Run gateway and model server of `folder` as `make run` does.

    Raises NotReady if TensorFlow Serving is missing and `genuine`; otherwise, the model server is the embedded one.
    """
    if genuine and shutil.which(GENUINE) is None:
        raise NotReady(f"{GENUINE} is not on the PATH; install TensorFlow Serving.")
    path = [place for place in os.get_exec_path() if genuine or not Path(place, GENUINE).exists()]
    gateway, metrics, model_server = free_port(), free_port(), free_port()
    environment = {
        "RINGO_PORT": str(gateway),
        "RINGO_METRICS_PORT": str(metrics),
        "RINGO_MODEL_SERVER": f"localhost:{model_server}",
        "RINGO_MODEL_BASE_PATH": str(model.resolve()),
        "RINGO_MODEL_NAME": "apple",
        "PATH": os.pathsep.join(path),
    }
    milestones = {"gateway": lambda: is_live(gateway), "model server": lambda: listens(model_server)}
    command = [sys.executable, "-m", "serving", "run"]
    return running(command, Request(gateway, "/generate?seed=SEED"), environment, milestones, log, folder)


def nginx(gateway: Request, scratch: Path) -> AbstractContextManager[Server]:
    """Run nginx with deploy/nginx.conf before the gateway of `gateway`."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise NotReady("nginx is not installed; run apt-get install nginx-light.")
    port, text = free_port(), (ROOT / "deploy" / "nginx.conf").read_text()
    places = {"/tmp/": f"{scratch}/", "/dev/stdout": f"{scratch}/requests.log", "listen 8080": f"listen {port}"}
    for place, replacement in {**places, "gateway:8080": f"127.0.0.1:{gateway.port}"}.items():
        text = text.replace(place, replacement)
    (scratch / "nginx.conf").write_text(text)
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    command = [program, "-c", str(scratch / "nginx.conf"), *user]
    return running(command, replace(gateway, port=port), {}, {}, scratch / "nginx.log")


def peer(name: str, version: Path, log: Path) -> AbstractContextManager[Server]:
    """Run one of PEERS on the SavedModel in `version`.

    All log each request, as ours does.
    """
    port, python = free_port(), sys.executable
    at, query = f"127.0.0.1:{port}", Request(port, "/generate?seed=SEED")
    match name:
        case "flask":
            # 4 workers as in Flask's documentation. A pause longer than gunicorn's timeout of 30 s would end a worker.
            command = ["gunicorn", "--no-control-socket", "-w", "4", "--timeout", "600", "--access-logfile", "-"]
            command += ["--bind", at, "benchmarks.peers.flask_predict:app"]
            request = query
        case "fastapi":
            command = ["uvicorn", "--port", str(port), "benchmarks.peers.fastapi_app:app"]
            request = query
        case "bentoml":
            command = ["bentoml", "serve", "--port", str(port), "benchmarks.peers.bentoml_service:Images"]
            request = Request(port, "/generate", "POST", '{"seeds": [SEED]}')
        case "litserve":
            command = ["benchmarks.peers.litserve_app", str(port)]
            request = Request(port, "/predict", "POST", '{"seed": SEED}')
        case _:
            raise ValueError(f"{name!r} is none of {', '.join(PEERS)}.")
    environment = {"BENCH_VERSION": str(version), "BENTOML_DO_NOT_TRACK": "True", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return running([python, "-m", *command], request, environment, {}, log)


PEERS = ("flask", "fastapi", "bentoml", "litserve")


def descendants(pid: int) -> list[int]:
    """Return `pid` and all processes below it."""
    try:
        below = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in below for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(found for child in children for found in descendants(child))]


def command_name(pid: int) -> str:
    """Return the command of our process, or "server" for a peer."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes()
    return next((name for part, name in COMMANDS.items() if part in line), "server")


def cpu_s(pids: Sequence[int]) -> dict[str, float]:
    """Return the CPU time of `pids` since their start, by command."""
    used: dict[str, float] = {}
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        name = command_name(pid)
        used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def memory_mib(pids: Sequence[int]) -> dict[str, list[float]]:
    """Return the memory of each of the processes `pids`, by command."""
    held: dict[str, list[float]] = {}
    for pid in pids:
        held.setdefault(command_name(pid), []).append(round(proportional_mib(pid), 1))
    return held


def proportional_mib(pid: int) -> float:
    """Return a process's resident memory; pages that n processes share count 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
