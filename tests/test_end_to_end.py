"""What `make run` promises, with the generator that ships: `python -m serving run`, and HTTP from outside."""

import io
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from tests.conftest import LIMIT_S, ROOT, SHIPPED, command, ended_afterwards
from tests.gateway_process import environment, free_port
from training.latents import MAX_SEED


@dataclass(frozen=True)
class Service:
    port: int

    def png(self, seed: int) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/generate?seed={seed}", timeout=LIMIT_S) as response:
            assert response.headers["Content-Type"] == "image/png"
            return response.read()

    def pixels(self, seed: int) -> np.ndarray:
        with Image.open(io.BytesIO(self.png(seed))) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            return np.asarray(picture)


@contextmanager
def running_service() -> Iterator[Service]:
    """`python -m serving run` with the embedded model server, from ready to ended."""
    port = free_port()
    process = subprocess.Popen(
        command("serving", "run"),
        env=environment(port=port, model_server=f"127.0.0.1:{free_port()}") | {"PATH": "/nowhere"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with ended_afterwards(process):
        said = []
        while not (said and said[-1].startswith("Ctrl-C")):  # ends with the process at the latest
            line = process.stdout.readline()
            assert line, "".join(said)
            said.append(line)
        assert "embedded default" in said[0]
        yield Service(port)


@pytest.fixture(scope="module")
def service():
    with running_service() as service:
        yield service


def test_seed_42_is_a_64_pixel_picture(service):
    assert service.pixels(42).shape == (64, 64, 3)


def test_the_pictures_are_coloured_fruit_on_white(service):
    """Corners white, the middle dark or coloured, and a good part of the picture covered: what an apple needs."""
    for seed in range(16):
        picture = service.pixels(seed).astype(int)
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        fruit = (picture.min(axis=2) < 215).mean()
        assert np.median(corners.min(axis=1)) > 235, seed  # one of the four may hold the edge of a large apple
        assert picture[28:36, 28:36].mean(axis=(0, 1)).min() < 200, seed
        assert 0.35 < fruit < 0.95, seed


def test_seeds_0_1_42_43_and_the_largest_are_five_different_apples(service):
    assert len({service.png(seed) for seed in (0, 1, 42, 43, MAX_SEED)}) == 5


def test_the_same_seed_gives_the_same_bytes_after_a_restart(service):
    before = [service.png(seed) for seed in (0, 42, MAX_SEED)]
    assert [service.png(seed) for seed in (0, 42, MAX_SEED)] == before
    with running_service() as restarted:
        assert [restarted.png(seed) for seed in (0, 42, MAX_SEED)] == before


def test_http_gives_the_pixels_of_the_saved_model(service):
    import tensorflow as tf

    generate = tf.saved_model.load(str(SHIPPED)).signatures["generate"]
    for seed in range(40, 47):
        image = generate(seeds=tf.constant([seed], tf.int64))["images"].numpy()[0]
        assert np.array_equal(image, service.pixels(seed)), seed
