import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.run import ALLOCATOR
from tests.gateway_process import gateway_for


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
