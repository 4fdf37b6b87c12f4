"""docs/direct_to_model_server.py: an official client, nothing of ours, the same pixels."""

import io
import runpy

import numpy as np
from PIL import Image

from tests.conftest import ROOT
from tests.gateway_process import gateway_for
from tests.hosted_model_server import hosting, publish, save_model

SEEDS = [7, 42, 2**63 - 1]


def test_its_pixels_are_those_of_the_gateways_pngs(tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "direct_to_model_server.py"))
    save_model(tmp_path / "saved", shade=20)
    (tmp_path / "models").mkdir()
    publish(tmp_path / "saved", tmp_path / "models", "1")
    with hosting(tmp_path / "models") as hosted, gateway_for(hosted.target, tmp_path) as gateway:
        script["main"](hosted.target, tmp_path / "apples", SEEDS)
        for seed in SEEDS:
            expected = np.asarray(Image.open(io.BytesIO(gateway.ask(f"/generate?seed={seed}").body)))
            assert np.array_equal(np.asarray(Image.open(tmp_path / "apples" / f"{seed}.png")), expected)
