"""`python -m serving run` with bundled model and embedded model server."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import BUNDLED
from tests.gateway_process import Gateway, environment, free_port
from tests.serving.test_run import running
from training.model.latents import MAX_SEED


@contextmanager
def running_service(folder: Path, **settings: object) -> Iterator[Gateway]:
    """Run the command in the `with` block; yield its ready gateway."""
    ports = {"port": free_port(), "metrics_port": free_port()}
    settings |= {"model_server": f"127.0.0.1:{free_port()}", "model_name": "-apple"}  # the name is no option
    with running(environment(**ports, **settings) | {"PATH": "/nowhere"}, folder) as run:
        assert "the embedded one" in run.output
        yield Gateway(**ports, process=run.process, log=folder / "err")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("run")) as service:
        yield service


def png(service: Gateway, path: str) -> bytes:
    reply = service.ask(path)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
    return reply.body


def test_images_of_the_bundled_model_show_coloured_fruit_on_white(service):
    for seed in range(16):
        image = service.pixels(f"/generate?seed={seed}").astype(int)
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.median(corners.min(axis=1)) > 235, seed  # one of the four may hold the edge of a large apple
        assert image[28:36, 28:36].mean(axis=(0, 1)).min() < 200, seed
        assert 0.35 < (image.min(axis=2) < 215).mean() < 0.95, seed  # the fruit's share of the image


def test_bundled_model_states_the_licence_of_its_card_in_image_about_and_page(service):
    with Image.open(io.BytesIO(png(service, "/42.png"))) as image:
        licence = image.info["Copyright"]
    card = (BUNDLED / "model_card.md").read_text()
    for stated in ("CC BY-SA 4.0", "Mihai Oltean, Fruits-360"):
        assert stated in licence
        assert stated in card
    assert json.loads(service.ask("/about").body)["licence"] == licence
    assert licence in service.ask("/").body.decode()


def test_bytes_are_equal_for_32_clients_and_after_a_restart(service, tmp_path):
    urls = [f"/generate?seed={seed}" for seed in [0, 42, MAX_SEED, *range(200, 205)]]
    with ThreadPoolExecutor(32) as pool:
        images = list(pool.map(lambda url: png(service, url), urls * 4))
    assert images == images[: len(urls)] * 4
    with running_service(tmp_path, cache_mb=0) as restarted:
        assert [png(restarted, url) for url in urls] == images[: len(urls)]


def test_pixels_are_equal_alone_in_a_grid_and_at_both_ends_of_a_morph(service):
    seeds = (MAX_SEED, *range(15))
    grid = service.pixels(f"/grid?seeds={','.join(map(str, seeds))}&columns=16")
    for place, seed in enumerate(seeds):
        alone = service.pixels(f"/generate?seed={seed}")
        forth = service.pixels(f"/morph?start={seed}&end=5&frames=3")
        back = service.pixels(f"/morph?start=5&end={seed}&frames=5")
        side = len(alone)
        for tile in (grid[:, place * side : (place + 1) * side], forth[:, :side], back[:, -side:]):
            assert np.array_equal(tile, alone)
