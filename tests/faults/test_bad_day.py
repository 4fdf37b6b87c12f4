"""A gateway with little shared memory, few open files or foreign addresses."""

import http.client
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import gettempdir

import pytest

from serving.telemetry.worker_files import FILE_BYTES, KINDS
from tests.batch_process import batch_for
from tests.conftest import LIMIT_S, wait_until
from tests.gateway_process import free_port, gateway_for, run_serving

NEED_KB = 2 * len(KINDS) * FILE_BYTES // 1024  # of two workers


def shell(script: str) -> tuple[str, ...]:
    """Return a command that runs `script` before the command behind it."""
    return ("sh", "-c", f'{script} && exec "$@"', "sh")


@pytest.mark.parametrize(
    ("mount", "workers"), [("size=4k", 1), ("size=4k", 2), ("ro", 1), ("ro", 2), (f"size={NEED_KB + 64}k", 2)]
)
def test_gateway_serves_and_counts_when_shared_memory_is_full_or_read_only(model_server, tmp_path, mount, workers):
    script = f"export PROMETHEUS_MULTIPROC_DIR=/no; mount -t tmpfs -o {mount} tmpfs /dev/shm"
    wrapper = ("unshare", "--mount", *shell(script))
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    with gateway_for(model_server.target, tmp_path, wrapper=wrapper, workers=workers) as gateway:
        wait_until(lambda: len(gateway.workers()) == workers, "workers")
        with suppress(OSError), Path(f"/proc/{gateway.process.pid}/root/dev/shm/others").open("wb", 0) as others:
            while others.write(bytes(4096)):
                pass
        os.kill(int(gateway.workers()[0].name), signal.SIGKILL)
        wait_until(lambda: "SIGKILL" in gateway.log.read_text(), "the end of a worker")
        wait_until(lambda: gateway.ask("/readyz").status == 200, "a model that is ready again")
        paths = ["/generate?seed=1", "/grid", "/nothing", "/generate?seed=x", "/about", "/morph?start=1&end=2"] * 5
        assert {gateway.ask(path).status for path in paths} == {200, 404, 400}
        assert gateway.metric("ringo_requests_total", resource="grid", outcome="answered") == 5
    assert "SIGBUS" not in gateway.log.read_text()
    assert "Traceback" not in gateway.log.read_text()


def test_gateway_names_the_reason_when_no_folder_has_room():
    done = run_serving("gateway", wrapper=shell("ulimit -f 0"), port=free_port(), workers=2)
    sentence = "allowed is a writable folder with 4 MiB of room, which /dev/shm does not have: File too large.\n"
    assert done.stderr == f"TMPDIR is '{gettempdir()}'; {sentence}"


def test_all_clients_are_served_when_few_files_may_be_open(model_server, start_gateway):
    gateway, statuses = start_gateway(model_server.target, wrapper=shell("ulimit -n 200")), set()
    with ExitStack() as stack:
        for _ in range(300):
            client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S)
            stack.enter_context(closing(client)).request("GET", "/generate?seed=1")
            statuses.add(client.getresponse().status)
    assert statuses == {200}


@pytest.mark.parametrize("part", ["gateway", "batch", "model-server", "run", "verify"])
def test_command_names_the_number_of_files_when_too_few_may_be_open(part):
    words = (part, "x.png") if part == "verify" else (part,)
    done = run_serving(*words, wrapper=shell("ulimit -n 100"), port=free_port())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ulimit -n is '100'; allowed is a limit of at least 128 open files.\n"


def test_both_servers_listen_on_both_families_when_the_host_is_ipv6_any(model_server, start_gateway, tmp_path):
    gateway = start_gateway(model_server.target, host="::")
    with batch_for(model_server.target, tmp_path, host="::") as batch:
        ports = (gateway.port, gateway.metrics_port, int(batch.target.rpartition(":")[2]), batch.metrics_port)
        for port in ports:
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, port), timeout=LIMIT_S).close()


def test_batch_server_names_the_host_when_it_is_link_local(tmp_path):
    wrapper = ("unshare", "--net", *shell("ip link set lo up && ip -6 addr add fe80::5/64 dev lo nodad"))
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may add an address")
    done = run_serving("batch", wrapper=wrapper, host="fe80::5%lo")
    assert done.stderr == "RINGO_HOST is 'fe80::5%lo'; allowed is an address that is not link-local.\n"


def test_new_streams_have_places_when_clients_cancelled_theirs(server, tmp_path):
    with batch_for(server.target, tmp_path, batch_streams=1) as batch:
        batch.paint([1])
        with server.holding():
            calls, cancelled = len(server.requests), batch.stream([2])
            wait_until(lambda: len(server.requests) > calls, "a call of the model")
            cancelled.cancel()
            time.sleep(0.5)  # until the server knows
            stream = batch.stream([3])
        assert [response.picture.seed for response in stream] == [3]
