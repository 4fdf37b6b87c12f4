"""A load of 70 % of the capacity for SOAK_MINUTES (default: 30).

Nobody reads the gateway's stderr.
"""

import os
import time
from pathlib import Path

import pytest

from tests.faults.load import percentile, put_load
from tests.faults.processes import BUNDLED_MODEL, model_server, resident_kb
from tests.gateway_process import gateway_for

SOAK_S = 60 * float(os.environ.get("SOAK_MINUTES", "30"))
SHARE = 0.7  # of the capacity
WARM_UP_S = 20.0
SAMPLES = 20


def mixed(number: int) -> str:
    """Return a URL: of a new image, a cached one, or several."""
    match number % 10:
        case 0:
            return f"/grid?seeds={number}-{number + 3}"
        case 1 | 2:
            return f"/generate?seed={number % 50}"
        case _:
            return f"/generate?seed={number}"


@pytest.mark.chaos
@pytest.mark.timeout(SOAK_S + 300)
def test_nothing_fails_or_grows_at_70_percent_of_the_capacity(tmp_path):
    with model_server(BUNDLED_MODEL) as server, gateway_for(server.target, tmp_path, unread=True) as gateway:
        with put_load(gateway.port, 16, mixed) as most:  # this fills the cache, too
            time.sleep(WARM_UP_S)
        per_second = len(most.answered) / WARM_UP_S
        worker, model, samples = gateway.worker(), Path("/proc", str(server.process.pid)), []
        with put_load(gateway.port, 16, lambda n: mixed(n + 10**6), per_second=SHARE * per_second) as load:
            began_s = time.monotonic()
            while time.monotonic() < began_s + SOAK_S:
                time.sleep(SOAK_S / SAMPLES)
                samples.append((resident_kb(worker), len(list((worker / "fd").iterdir())), resident_kb(model)))
        assert gateway.worker() == worker
        assert gateway.metric("ringo_log_lines_dropped_total") > 0
    memory, files, of_model = zip(*samples, strict=True)
    p50, p99 = (percentile(load.answered, percent) for percent in (50, 99))
    print(
        f"\n{SOAK_S / 60:g} min at {SHARE * per_second:.0f}/s: {len(load.outcomes)} requests, "
        f"{len(load.failed)} failed, p50 {p50:.3f} s, p99 {p99:.3f} s; "
        f"gateway {memory[1]} to {memory[-1]} kB, {files[1]} to {files[-1]} files; "
        f"model server {of_model[1]} to {of_model[-1]} kB"
    )
    assert not load.failed, load.failed[0]
    assert memory[-1] < 1.05 * memory[1]
    assert of_model[-1] < 1.05 * of_model[1]
    assert max(files) <= files[1] + 4  # a refresh and a probe may be in flight
