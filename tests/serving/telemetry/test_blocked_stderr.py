"""A gateway whose stderr is a full pipe loses only log lines."""

import fcntl
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.telemetry.logs import MAX_QUEUED
from tests.conftest import LIMIT_S, wait_until
from tests.gateway_process import Gateway, gateway_for

PIPE_BYTES = 4096  # 20 lines


@pytest.fixture(params=[""])
def gateway(request, tmp_path) -> Iterator[Gateway]:
    wrapper = ("sh", "-c", f'{request.param} exec "$@"', "sh")
    with gateway_for("localhost:1", tmp_path, wrapper=wrapper, unread=True, probe="/livez") as gateway:
        fcntl.fcntl(gateway.process.stderr, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield gateway


def statuses(gateway: Gateway, count: int) -> set[int]:
    """Return the statuses of `count` requests, each of which is a line."""
    return {gateway.ask("/nothing").status for _ in range(count)}


def test_gateway_answers_and_counts_lost_lines_when_stderr_is_blocked(gateway):
    assert statuses(gateway, 2 * MAX_QUEUED) == {404}
    dropped = gateway.metric("ringo_log_lines_dropped_total")
    assert dropped > 0
    report = next(line for line in gateway.process.stderr if b"lines were dropped" in line)
    assert re.search(rb"WARNING (\d+) log lines", report)[1] == b"%d" % dropped


def test_sigterm_ends_a_gateway_when_stderr_is_blocked(gateway):
    assert statuses(gateway, 100) == {404}  # five times the pipe's size
    gateway.process.terminate()
    assert gateway.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("gateway", ["2>&-", ">&- 2>&-"], indirect=True)
def test_log_lines_go_nowhere_else_when_stderr_is_closed(gateway):
    assert {(process / "fd" / "2").readlink() for process in gateway.workers()} == {Path("/dev/null")}


@pytest.mark.parametrize("gateway", ["2> /dev/full RINGO_WORKERS=2"], indirect=True)
def test_lost_lines_are_counted_when_a_worker_is_replaced(gateway):
    before = gateway.workers()
    for worker in before:
        os.kill(int(worker.name), signal.SIGKILL)
    wait_until(lambda: len(gateway.workers()) == 2 and not set(before) & set(gateway.workers()), "new workers")
    assert statuses(gateway, 10) == {404}
    wait_until(lambda: gateway.metric("ringo_log_lines_dropped_total") >= 10, "lost lines")
