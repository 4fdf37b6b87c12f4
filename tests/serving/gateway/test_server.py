import re
from concurrent.futures import ThreadPoolExecutor

from serving.__main__ import FOREIGN
from tests.gateway_process import gateway_for


def test_gateway_serves_and_counts_when_variables_of_its_libraries_are_set(model_server, tmp_path):
    wrapper = ("env", *(f"{name}=/nope" for name in FOREIGN))
    with gateway_for(model_server.target, tmp_path, wrapper=wrapper) as gateway:
        assert gateway.ask("/generate?seed=1").status == 200
        assert gateway.metric('ringo_pictures_total{source="model"}') == 1


def test_a_worker_that_has_answered_is_resident_with_at_most_100_mb(model_server, tmp_path):
    with gateway_for(model_server.target, tmp_path) as gateway:
        for seed in range(20):
            assert gateway.ask(f"/generate?seed={seed}").status == 200
        with ThreadPoolExecutor(64) as pool:  # the largest images, and as many as wait for the model at a time
            sheets = pool.map(lambda seed: gateway.ask(f"/grid?seeds={seed}-{seed + 3}&columns=2&size=512"), range(64))
            assert {sheet.status for sheet in sheets} <= {200, 503}  # 503 after LARGE_WAIT_S on a busy machine
        (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", (gateway.worker() / "status").read_text())
    assert int(resident) * 1024 <= 100e6
