"""Model server and name are gone, as after a container stops."""

import time

import pytest

from tests.conftest import wait_until
from tests.faults.processes import model_server
from tests.gateway_process import gateway_for
from tests.name_server import name_server

BACK_WITHIN_S = 5.0


@pytest.mark.parametrize(
    "away_s", [20, *(pytest.param(s, marks=[pytest.mark.chaos, pytest.mark.timeout(s + 300)]) for s in (60, 150, 600))]
)
def test_first_image_comes_within_5_s_after_the_name_is_back(tmp_path, away_s):
    with (
        name_server() as names,
        model_server() as server,
        gateway_for(
            f"dns://127.0.0.1:{names.server_address[1]}/model-server.test:{server.port}", tmp_path, cache_mb=0
        ) as gateway,
    ):
        assert gateway.ask("/generate?seed=1").status == 200
        names.is_away = True
        server.kill()
        back_s = time.monotonic() + away_s
        wait_until(lambda: gateway.ask("/generate?seed=2").status == 503, "a refusal")
        wait_until(lambda: time.monotonic() > back_s, "the time away", limit_s=away_s + 10)
        server.start()
        names.is_away = False
        wait_until(lambda: gateway.ask("/generate?seed=3").status == 200, "an image", limit_s=BACK_WITHIN_S)
