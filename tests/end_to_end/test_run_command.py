"""What `make run` promises, with the generator that ships: `python -m serving run`, and HTTP from outside."""

import io
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import LIMIT_S, SHIPPED
from tests.gateway_process import environment, free_port
from tests.serving.test_run import running
from training.model.latents import MAX_SEED


@dataclass(frozen=True)
class Service:
    port: int

    def ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=LIMIT_S) as response:
            assert response.headers["Content-Type"] == "image/png"
            return response.read()

    def png(self, seed: int) -> bytes:
        return self.ask(f"/generate?seed={seed}")

    def pixels(self, seed: int) -> np.ndarray:
        return decoded(self.png(seed))


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


@contextmanager
def running_service(folder: Path, **settings: object) -> Iterator[Service]:
    """`python -m serving run` with the embedded model server, from ready to ended."""
    port = free_port()
    env = environment(port=port, model_server=f"127.0.0.1:{free_port()}", **settings) | {"PATH": "/nowhere"}
    with running(env, folder) as run:
        assert "embedded default" in run.said
        yield Service(port)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("run")) as service:
        yield service


def test_the_pictures_are_coloured_fruit_on_white(service):
    """Corners white, the middle dark or coloured, and a good part of the picture covered: what an apple needs."""
    for seed in range(16):
        picture = service.pixels(seed).astype(int)
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        fruit = (picture.min(axis=2) < 215).mean()
        assert np.median(corners.min(axis=1)) > 235, seed  # one of the four may hold the edge of a large apple
        assert picture[28:36, 28:36].mean(axis=(0, 1)).min() < 200, seed
        assert 0.35 < fruit < 0.95, seed


def test_the_same_seed_gives_the_same_bytes_to_32_clients_and_after_a_restart_without_the_cache(service, tmp_path):
    seeds = [0, 42, MAX_SEED, *range(200, 205)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(service.png, seeds * 4))
    assert together == together[: len(seeds)] * 4
    with running_service(tmp_path, cache_mb=0) as restarted:
        for _ in range(2):
            assert [restarted.png(seed) for seed in seeds] == together[: len(seeds)]


def test_alone_in_a_grid_and_at_either_end_of_a_morph_a_seed_is_the_same_pixels(service):
    seeds = (103, 7, MAX_SEED)
    grid = decoded(service.ask(f"/grid?seeds={','.join(map(str, seeds))}&columns=3"))
    for place, seed in enumerate(seeds):
        morph = decoded(service.ask(f"/morph?start={seed}&end={(seed + 1) % 2**63}&frames=3"))
        back = decoded(service.ask(f"/morph?start=5&end={seed}&frames=5"))
        alone = service.pixels(seed)
        side = len(alone)
        for tile in (grid[:, place * side : (place + 1) * side], morph[:, :side], back[:, -side:]):
            assert np.array_equal(tile, alone)


def test_http_gives_the_pixels_of_the_saved_model(service):
    import tensorflow as tf

    generate = tf.saved_model.load(str(SHIPPED)).signatures["generate"]
    for seed in range(40, 47):
        image = generate(seeds=tf.constant([seed], tf.int64))["images"].numpy()[0]
        assert np.array_equal(image, service.pixels(seed)), seed
