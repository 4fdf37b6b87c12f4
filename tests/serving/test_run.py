"""`python -m serving run` as a process, with a fake in the place of the genuine tensorflow_model_server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
import trustme

from serving.run import MAX_WORKERS, model_server_command
from serving.settings import Settings
from tests.conftest import LIMIT_S, ROOT, command, ended_afterwards, wait_until
from tests.gateway_process import environment, free_port


@pytest.fixture
def surroundings(tmp_path):
    """An environment with free ports, one version of a model, and a tensorflow_model_server on the PATH."""
    (tmp_path / "models" / "1").mkdir(parents=True)
    genuine = tmp_path / "bin" / "tensorflow_model_server"
    genuine.parent.mkdir()
    genuine.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fake_model_server "$@"\n')
    genuine.chmod(0o755)
    settings = environment(
        port=free_port(), model_server=f"localhost:{free_port()}", model_base_path=tmp_path / "models", model_name="cat"
    )
    return settings | {"PATH": f"{genuine.parent}:{settings['PATH']}"}


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    said: str

    @property
    def url(self) -> str:
        return self.said.split("Ready: ")[1].split()[0]

    def children(self) -> list[int]:
        """Return model server and gateway, in the order of their start."""
        return children_of(self.process.pid)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def all_below(pid: int) -> set[int]:
    return {below for child in children_of(pid) for below in {child, *all_below(child)}}


def alive(pids: set[int]) -> set[int]:
    """Return those that still run: an ended process that nobody has waited for (state Z) does not."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    return {pid for pid in pids if runs(pid)}


@contextmanager
def running(surroundings: dict[str, str], folder: Path) -> Iterator[Running]:
    out, err = folder / "out", folder / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command("serving", "run"), env=surroundings, stdout=stdout, stderr=stderr, cwd=ROOT)
    with ended_afterwards(process):
        wait_until(lambda: process.poll() is not None or "Ctrl-C" in out.read_text(), "run")
        assert process.poll() is None, err.read_text()
        yield Running(process, out.read_text())


def test_the_address_it_prints_gives_a_picture(surroundings, tmp_path):
    with (
        running(surroundings, tmp_path) as run,
        build_opener(ProxyHandler({})).open(run.url, timeout=LIMIT_S) as reply,
    ):
        assert reply.read().startswith(b"\x89PNG")


def test_it_is_ready_with_certificates_of_callers_and_a_token_that_it_has_not(surroundings, tmp_path):
    ca, paths = trustme.CA(), {name: tmp_path / name for name in ("TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA")}
    server = ca.issue_cert("localhost")
    for name, blob in zip(paths, (server.cert_chain_pems[0], server.private_key_pem, ca.cert_pem), strict=True):
        blob.write_to_path(paths[name])
    secured = {f"RINGO_{name}": str(path) for name, path in paths.items()} | {"RINGO_TOKEN": "0123456789abcdef"}
    with running(surroundings | secured, tmp_path) as run:
        assert run.url.startswith("https://")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_it_with_status_0_and_leaves_nobody(surroundings, tmp_path, ending):
    with running(surroundings, tmp_path) as run:
        family = all_below(run.process.pid)
        run.process.send_signal(ending)
        assert run.process.wait(LIMIT_S) == 0
    assert len(family) == 2 + min(os.cpu_count(), MAX_WORKERS)  # model server, gunicorn, a worker per core
    assert alive(family) == set()


def test_not_even_a_killed_launcher_leaves_anybody(surroundings, tmp_path):
    with running(surroundings, tmp_path) as run:
        family = all_below(run.process.pid)
        run.process.kill()
        wait_until(lambda: not alive(family), "the end of the children", LIMIT_S)


@pytest.mark.parametrize(("place", "name"), [(0, "model server"), (1, "gateway")])
def test_the_death_of_one_ends_the_others_and_is_told(surroundings, tmp_path, place, name):
    with running(surroundings, tmp_path) as run:
        family = all_below(run.process.pid)
        os.kill(run.children()[place], signal.SIGKILL)
        assert run.process.wait(LIMIT_S) == 1
    assert (tmp_path / "err").read_text().count(f"The {name} was killed by SIGKILL: ending the rest.\n") == 1
    wait_until(lambda: not alive(family), "the end of a worker whose gunicorn was killed", LIMIT_S)  # init reaps it


def test_without_the_genuine_model_server_the_embedded_one_is_started(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    model_server = model_server_command(Settings(model_server="localhost:8501"))
    assert model_server == command(
        *("serving", "model-server", "--host", "localhost", "--port", "8501"),
        *("--model_name", "apple", "--model_base_path", Path("models/apple").resolve()),
        *("--log-format", "text", "--enable_serialization_as_tensor_content"),
    )
    assert "embedded default" in capsys.readouterr().out
