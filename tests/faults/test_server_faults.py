"""Gateways and batch servers that end, and those with little memory, few files or foreign addresses."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from serving.telemetry.worker_files import FILE_BYTES, KINDS
from tests.batch_process import batch_for
from tests.conftest import LIMIT_S, wait_until
from tests.faults.load import put_load
from tests.faults.processes import BUNDLED_MODEL, ModelServer
from tests.gateway_process import Gateway, free_port, gateway_for, run_serving, shell
from tests.serving.paint.conftest import rows, running_paint

CLIENTS = 16
STEP = 300  # images between two ends of a batch server
NEED_KB = 2 * len(KINDS) * FILE_BYTES // 1024  # of two workers


def test_requests_in_flight_are_answered_after_sigterm(server, start_gateway):
    gateway = start_gateway(server.target)
    before = len(server.requests)
    with ThreadPoolExecutor(CLIENTS) as pool, server.holding():
        replies = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in range(CLIENTS)]
        wait_until(lambda: gateway.metric("ringo_requests_in_flight") == CLIENTS, "all requests to be in flight")
        wait_until(lambda: len(server.requests) > before, "a call of the model")
        gateway.process.terminate()
    assert {reply.result().status for reply in replies} == {200}
    assert gateway.process.wait(LIMIT_S) == 0


def test_only_open_connections_fail_when_a_worker_is_killed(server, start_gateway):
    gateway = start_gateway(server.target, workers=2, cache_mb=0)
    with put_load(gateway.port, CLIENTS, lambda number: f"/generate?seed={number % 40}") as load:
        wait_until(lambda: len(load.answered) > 100 and len(gateway.workers()) == 2, "images")
        before = set(gateway.workers())
        os.kill(int(min(before).name), signal.SIGKILL)
        killed_s = time.monotonic()
        wait_until(lambda: len(set(gateway.workers()) - before) == 1, "another worker", limit_s=10)
        load.wait_for_images(500)
    assert len(load.failed) <= 2 * CLIENTS
    assert all(outcome.status is None and outcome.started_s < killed_s + 1 for outcome in load.failed)
    assert max(map(len, load.digests().values())) == 1


def shared_memory(gateway: Gateway) -> Path:
    """Return the folder in memory that `gateway` has locked."""
    opened = [file.readlink() for file in Path(f"/proc/{gateway.process.pid}/fd").iterdir()]
    return next(path for path in opened if path.match("/dev/shm/ringo-*"))


def test_worker_is_replaced_when_its_shared_memory_was_removed(model_server, start_gateway):
    gateway = start_gateway(model_server.target)
    shutil.rmtree(shared_memory(gateway))
    killed = gateway.worker()
    os.kill(int(killed.name), signal.SIGKILL)
    wait_until(lambda: gateway.workers() not in ([], [killed]), "another worker", limit_s=10)
    assert gateway.ask("/livez").status == 200


def test_port_and_shared_memory_are_free_when_a_gateway_was_killed(model_server, start_gateway):
    living, gateway = (start_gateway(model_server.target, workers=workers) for workers in (1, 2))
    workers, folders = gateway.workers(), [shared_memory(one) for one in (gateway, living)]
    gateway.process.kill()
    gateway.process.wait(LIMIT_S)
    wait_until(lambda: not any(worker.exists() for worker in workers), "the end of its workers")
    with socket.create_server(("127.0.0.1", gateway.port)):
        start_gateway(model_server.target)
        assert [folder.exists() for folder in folders] == [False, True]


@pytest.mark.parametrize(
    ("models", "ends"),
    [
        (None, [signal.SIGTERM, signal.SIGKILL]),
        pytest.param(BUNDLED_MODEL, [signal.SIGTERM] * 5, marks=pytest.mark.chaos),
        pytest.param(BUNDLED_MODEL, [signal.SIGKILL] * 5, marks=pytest.mark.chaos),
    ],
)
def test_clients_lose_no_image_when_a_batch_server_is_replaced_or_killed(tmp_path, models, ends):
    settings = {"batch_port": free_port(), "batch_metrics_port": free_port(), "batch_drain_s": 0.5}
    out, seeds = tmp_path / "out", range(STEP * (len(ends) + 5))
    with ExitStack() as servers:
        target = servers.enter_context(ModelServer(models)).target
        batch = servers.enter_context(batch_for(target, tmp_path, **settings))
        with running_paint(batch, out, "--streams", 16, seeds=f"0:{seeds.stop}") as process:
            for number, end in enumerate(ends, start=1):
                wait_until(lambda: len(rows(out)) >= number * STEP, "images")  # noqa: B023 (is called here)
                batch.process.send_signal(end)
                batch.process.wait(LIMIT_S)
                batch = servers.enter_context(batch_for(target, tmp_path, **settings))
            output = process.communicate(timeout=4 * LIMIT_S)
            assert process.returncode == 0, output
        found = rows(out)
        assert [row["seed"] for row in found] == list(seeds)
        assert [row["sha256"] for row in found[:STEP]] == [picture.sha256.hex() for picture in batch.paint(range(STEP))]


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


def test_all_clients_are_served_when_few_files_may_be_open(model_server, start_gateway):
    gateway, statuses = start_gateway(model_server.target, wrapper=shell("ulimit -n 200")), set()
    with ExitStack() as stack:
        for _ in range(300):
            client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S)
            stack.enter_context(closing(client)).request("GET", "/generate?seed=1")
            statuses.add(client.getresponse().status)
    assert statuses == {200}


def test_all_clients_are_served_when_many_are_silent_at_first_and_few_files_may_be_open(model_server, start_gateway):
    gateway = start_gateway(model_server.target, wrapper=shell("ulimit -n 200"))
    clients = [http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S) for _ in range(140)]
    for client in clients:
        client.connect()
    wait_until(lambda: len(list((gateway.worker() / "fd").iterdir())) > 160, "as many connections as it takes")
    for client in clients:
        with closing(client):
            client.request("GET", "/livez")
            assert client.getresponse().status == 200
    assert "Traceback" not in gateway.log.read_text()


def test_clients_that_do_not_close_their_side_delay_no_others(model_server, start_gateway):
    gateway, began_s = start_gateway(model_server.target), time.monotonic()
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=LIMIT_S))
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert client.recv(99).startswith(b"HTTP/1.0 200 ")
    assert time.monotonic() - began_s < 2


def test_both_servers_listen_on_both_families_when_the_host_is_ipv6_any(model_server, start_gateway, tmp_path):
    gateway = start_gateway(model_server.target, host="::")
    with batch_for(model_server.target, tmp_path, host="::") as batch:
        for port in (gateway.port, gateway.metrics_port, int(batch.target.rpartition(":")[2]), batch.metrics_port):
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
