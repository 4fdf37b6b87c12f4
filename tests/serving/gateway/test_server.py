import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.run import ALLOCATOR
from serving.runtime.ports import listen
from tests.conftest import LIMIT_S, ROOT, command
from tests.gateway_process import environment, gateway_for


@pytest.fixture(scope="module")
def gateway(model_server, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in ALLOCATOR.items():
            patch.setenv(name, value)
        gateway = stack.enter_context(gateway_for(model_server.target, tmp_path_factory.mktemp("gateway")))
        for seed in range(20):
            assert gateway.ask(f"/generate?seed={seed}").status == 200
        with ThreadPoolExecutor(64) as pool:  # as many as wait for the model at a time, for the largest that there are
            sheets = pool.map(lambda seed: gateway.ask(f"/grid?seeds={seed}-{seed + 3}&columns=2&size=512"), range(64))
            assert {sheet.status for sheet in sheets} == {200}
        yield gateway


def test_a_worker_that_has_answered_holds_no_tensorflow(gateway):
    assert "libtensorflow" not in (gateway.worker() / "maps").read_text()


def test_a_worker_that_has_answered_is_resident_with_at_most_100_mb(gateway):
    (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", (gateway.worker() / "status").read_text())
    assert int(resident) * 1024 <= 100e6


def test_until_it_is_ready_the_gateway_takes_less_than_2_s_of_a_core(model_server, tmp_path):
    """Of a core and not on the clock, which on a busy machine measures the others."""
    with gateway_for(model_server.target, tmp_path) as gateway:
        assert gateway.ask("/readyz").status == 200
        parent = Path("/proc", str(gateway.process.pid))
        ticks = sum(
            int(field)
            for process in (parent, gateway.worker())
            for field in (process / "stat").read_text().split()[13:15]
        )
    assert ticks / os.sysconf("SC_CLK_TCK") < 2


def test_sigterm_ends_the_gateway_with_status_0(model_server, tmp_path):
    with gateway_for(model_server.target, tmp_path) as gateway:
        pass
    assert gateway.process.returncode == 0


@pytest.mark.parametrize("part", ["gateway", "run"])
def test_a_taken_port_is_one_sentence_that_names_the_variable(part):
    with listen("127.0.0.1", 0, variable="", value="") as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            command("serving", part),
            env=environment(port=port),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=ROOT,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"RINGO_PORT is '{port}'; allowed is a port that is free on 127.0.0.1: Address already"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["nosuchhost.invalid", " 127.0.0.1", "-1", "192.0.2.1", "x" * 64, "ä" * 64])
def test_a_host_that_is_not_this_machine_is_one_sentence_that_names_the_variable(host):
    done = subprocess.run(
        command("serving", "gateway"),
        env=environment(host=host),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"RINGO_HOST is '{host}'; allowed is a name or address of this machine: ")
    assert "Unknown error" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"port": "x"}, "RINGO_PORT is 'x'; allowed is a whole number from 1 to 65535.\n"),
        (
            {"model_name": "\udcff"},
            "RINGO_MODEL_NAME is '\\udcff'; allowed is the name of a model, in UTF-8.\n",
        ),
    ],
)
def test_a_bad_setting_is_one_sentence(setting, sentence):
    done = subprocess.run(
        command("serving", "gateway"),
        env=environment(**setting),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == sentence
