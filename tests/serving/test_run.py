"""`python -m serving run` as a process, with a fake tensorflow_model_server."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
import trustme

from serving.run import MAX_WORKERS
from tests.conftest import LIMIT_S, ROOT, command, full_pipe, started, wait_until
from tests.gateway_process import children_of, environment, free_port


@pytest.fixture
def surroundings(tmp_path):
    """An environment with free ports, a model, and a fake tensorflow_model_server."""
    (tmp_path / "models" / "1").mkdir(parents=True)
    genuine = tmp_path / "bin" / "tensorflow_model_server"
    genuine.parent.mkdir()
    genuine.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fake_model_server "$@"\n')
    genuine.chmod(0o755)
    settings = environment(
        port=free_port(), model_server=f"localhost:{free_port()}", model_base_path=tmp_path / "models", model_name="cat"
    )
    with ExitStack() as strangers:  # on the same ports of IPv6: they accept, and send nothing
        for name in ("PORT", "METRICS_PORT", "MODEL_SERVER"):
            port = int(settings[f"RINGO_{name}"].rpartition(":")[2])
            strangers.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        yield settings | {"PATH": f"{genuine.parent}:{settings['PATH']}"}


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    family: set[int]  # the processes below it
    output: str


def all_below(pid: int) -> set[int]:
    return {below for child in children_of(pid) for below in {child, *all_below(child)}}


def alive(pids: set[int]) -> set[int]:
    """Return those of `pids` that run, without zombies, which have no program."""
    return {pid for pid in pids if Path(f"/proc/{pid}/exe").exists()}


@contextmanager
def running(surroundings: dict[str, str], folder: Path) -> Iterator[Running]:
    words, out = command("serving", "run"), folder / "out"
    with out.open("w") as stdout:
        options = {"env": surroundings, "stdout": stdout}
        with started(words, folder / "err", lambda: "Ctrl-C" in out.read_text(), **options) as process:
            yield Running(process, all_below(process.pid), out.read_text())


@pytest.mark.parametrize(
    ("host", "secured"),
    [
        ("127.0.0.1", ()),
        ("127.0.0.1", ("TLS_CERTIFICATE", "TLS_KEY", "TOKEN")),
        ("localhost", ("TLS_CERTIFICATE", "TLS_KEY", "TOKEN", "TLS_CLIENT_CA")),
    ],
)
def test_command_that_run_prints_saves_an_image_when_pasted(surroundings, tmp_path, host, secured):
    ca = trustme.CA()
    server = ca.issue_cert(host)
    parts = {"CERTIFICATE": server.cert_chain_pems[0], "KEY": server.private_key_pem, "CLIENT_CA": ca.cert_pem}
    values = {"TOKEN": "0123456789abcdef"} | {f"TLS_{name}": str(tmp_path / f"its {name}") for name in parts}
    for name, part in parts.items():
        part.write_to_path(values[f"TLS_{name}"])
    client = ca.issue_cert("client")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    own = {"RINGO_HOST": host, "RINGO_PORT": str(free_port())}  # not taken on ::1, which curl tries first
    env = surroundings | own | {f"RINGO_{name}": values[name] for name in secured}
    with running(env, tmp_path) as run:
        url, pasted, _ = run.output.split("Ready: ")[1].splitlines()
        subprocess.run(["sh", "-c", pasted], env=env, cwd=tmp_path, timeout=LIMIT_S, check=True)
    assert url.startswith("https://" if secured else "http://")
    assert values["TOKEN"] not in run.output
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")


def test_run_serves_the_url_that_it_prints_until_sigint_ends_all(surroundings, tmp_path):
    with running(surroundings, tmp_path) as run:
        url = run.output.split("Ready: ")[1].split()[0]
        with build_opener(ProxyHandler({})).open(url, timeout=LIMIT_S) as reply:
            assert reply.read().startswith(b"\x89PNG")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(LIMIT_S) == 0
    assert len(run.family) == 2 + min(os.cpu_count(), MAX_WORKERS)  # model server, gunicorn, a worker per core
    assert alive(run.family) == set()


def test_run_leaves_no_process_when_it_is_killed(surroundings, tmp_path):
    with running(surroundings, tmp_path) as run:
        run.process.kill()
        wait_until(lambda: not alive(run.family), "the end of the children")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGRTMIN + 1])  # the latter has no name
def test_run_ends_with_a_sentence_when_a_child_is_killed(surroundings, tmp_path, number):
    with running(surroundings, tmp_path) as run:
        _, gateway = children_of(run.process.pid)
        os.kill(gateway, number)
        assert run.process.wait(LIMIT_S) == 1
    sentence = f"The gateway was killed by signal {number}; read the log lines above.\n"
    assert (tmp_path / "err").read_text().count(sentence) == 1
    wait_until(lambda: not alive(run.family), "the end of a worker whose gunicorn was killed")  # init reaps it


@pytest.mark.parametrize(("words", "status"), [(["run"], 1), (["paint", "--seeds", "x"], 2)])
def test_command_ends_when_stderr_is_blocked(surroundings, tmp_path, words, status):
    (tmp_path / "bin" / "tensorflow_model_server").write_text("#!/bin/sh\nexit 3\n")
    with full_pipe("wb") as blocked:
        streams = {"stdout": subprocess.DEVNULL, "stderr": blocked}
        done = subprocess.run(command("serving", *words), env=surroundings, cwd=ROOT, timeout=LIMIT_S, **streams)
    assert done.returncode == status
