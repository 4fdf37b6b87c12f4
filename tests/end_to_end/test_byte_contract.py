"""One version, seed and set of options give one SHA-256, under load."""

import hashlib
import io
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.conftest import LIMIT_S, VERSION
from tests.fake_model_server import picture
from tests.gateway_process import gateway_for

CLIENTS = 32
REQUESTS = 1000
SEEDS = 40  # few enough that requests for one seed meet


def random_request(rng: random.Random) -> tuple[str, list[int]]:
    """Return the URL of a lossless image, and its seeds in order."""
    seeds = [rng.randrange(SEEDS) for _ in range(3)]
    path, seeds = rng.choice(
        [
            (f"/generate?seed={seeds[0]}", seeds[:1]),
            (f"/grid?seeds={seeds[0]},{seeds[1]},{seeds[2]}&columns=3", seeds),
            (f"/morph?start={seeds[0]}&end={seeds[1]}&frames=2", seeds[:2]),
        ]
    )
    return path + rng.choice(["", "&format=webp", f"&version={VERSION}"]), seeds


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_each_client_gets_its_own_image_when_32_requests_are_concurrent(model_server, tmp_path, cache_mb):
    rng = random.Random(cache_mb)
    requests = [random_request(rng) for _ in range(REQUESTS)]
    digests: dict[tuple[str, str | None], set[str]] = {}
    with (
        gateway_for(model_server.target, tmp_path, cache_mb=cache_mb, predict_timeout_s=LIMIT_S) as gateway,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        replies = list(pool.map(lambda request: gateway.ask(request[0]), requests))
    for (url, seeds), reply in zip(requests, replies, strict=True):
        assert reply.status == 200, reply.body
        with Image.open(io.BytesIO(reply.body)) as image:
            expected = np.hstack([picture(seed, VERSION) for seed in seeds])
            assert np.array_equal(np.asarray(image.convert("RGB")), expected), url
        name = (reply.headers["Content-Location"], reply.headers["ETag"])
        digests.setdefault(name, set()).add(hashlib.sha256(reply.body).hexdigest())
    assert {len(found) for found in digests.values()} == {1}
