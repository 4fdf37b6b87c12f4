"""One model version, one seed, one set of options is one SHA-256: under load, and while versions change."""

import hashlib
import http.client
import io
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from serving.model_server.versions import VersionState
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, picture
from tests.gateway_process import Gateway, Reply, gateway_for
from tests.hosted_model_server import hosting, publish, save_model

CLIENTS = 32
REQUESTS = 2000
VERSION = 3


def asking(gateway: Gateway, urls: list[tuple[str, dict[str, str]]]) -> list[Reply]:
    """Return the answers to `urls` with their headers, in order, over one connection that is kept open."""
    replies = []
    with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S)) as connection:
        for url, headers in urls:
            connection.request("GET", url, headers=headers)
            response = connection.getresponse()
            replies.append(Reply(response.status, response.headers, response.read()))
    return replies


def expected(url: str) -> np.ndarray:
    """Return the pixels that `url`, as `mixed` makes them, has to show."""
    query = dict(pair.split("=") for pair in url.partition("?")[2].split("&"))
    if url.startswith("/generate"):
        return picture(int(query["seed"]), VERSION)
    if url.startswith("/grid"):
        return np.hstack([picture(int(seed), VERSION) for seed in query["seeds"].split(",")])
    ends = (picture(int(query[name]), VERSION) for name in ("start", "end"))
    return np.hstack(list(ends))


def mixed(rng: random.Random) -> str:
    """Return a URL of any resource, in a format without loss, pinned or not; of few enough seeds that many meet."""
    seed = lambda: rng.randrange(40)  # noqa: E731
    url = rng.choice(
        [
            f"/generate?seed={seed()}",
            f"/grid?seeds={seed()},{seed()},{seed()}&columns=3",
            f"/morph?start={seed()}&end={seed()}&frames=2",
        ]
    )
    return url + rng.choice(["", "&format=webp", f"&version={VERSION}"])


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_of_2000_concurrent_mixed_requests_each_gets_its_own_picture(cache_mb, tmp_path):
    rng = random.Random(cache_mb)
    urls = [[(mixed(rng), {}) for _ in range(REQUESTS // CLIENTS // 2 + 1)] for _ in range(CLIENTS)]
    digests: dict[tuple[str, str | None], set[str]] = {}
    with (
        FakeModelServer(version=VERSION) as server,
        gateway_for(server.target, tmp_path, cache_mb=cache_mb) as gateway,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        for mine, replies in zip(urls, pool.map(lambda mine: asking(gateway, mine), urls), strict=True):
            for (url, _), reply in zip(mine, replies, strict=True):
                assert reply.status == 200, reply.body
                with Image.open(io.BytesIO(reply.body)) as image:
                    assert np.array_equal(np.asarray(image.convert("RGB")), expected(url)), url
                name = (reply.headers["Content-Location"], reply.headers["ETag"])
                digests.setdefault(name, set()).add(hashlib.sha256(reply.body).hexdigest())
    assert sum(map(len, urls)) * 2 >= REQUESTS  # over both settings of the cache
    assert {len(found) for found in digests.values()} == {1}


# Seeds whose latents are zeros in the tiny model: its picture of them is one shade, that of the version.
SEEDS = [840 * number for number in range(1, 30)]
SHADES = {1: 10, 2: 200}


def agree(reply: Reply) -> bool:
    """Return whether version, address, ETag and pixels of an answer are of one version, of which 304 has no pixels."""
    version = int(reply.headers["Ringo-Model-Version"])
    if not reply.headers["Content-Location"].endswith(f"&version={version}"):
        return False
    if reply.status == 304:
        return True
    with Image.open(io.BytesIO(reply.body)) as image:
        return set(np.asarray(image).ravel().tolist()) == {SHADES[version]}


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    for version, shade in SHADES.items():
        save_model(folder / f"shade-{version}", shade)
    return folder


def test_a_hot_swap_under_load_fails_no_request_and_mixes_no_versions(two_versions, tmp_path):
    base_path = tmp_path / "models"
    base_path.mkdir()
    publish(two_versions / "shade-1", base_path, "1")
    over = threading.Event()
    replies: list[Reply] = []

    def load(gateway: Gateway, client: int) -> None:
        rng, held = random.Random(client), ""
        while not over.is_set():
            (reply,) = asking(gateway, [(f"/generate?seed={rng.choice(SEEDS)}", {"If-None-Match": held})])
            replies.append(reply)
            held = reply.headers["ETag"]

    def painted_by(version: str) -> int:
        return sum(reply.headers["Ringo-Model-Version"] == version for reply in replies)

    with (
        hosting(base_path) as hosted,
        gateway_for(hosted.target, tmp_path, cache_mb=1) as gateway,
        ThreadPoolExecutor(8) as pool,
    ):
        clients = [pool.submit(load, gateway, client) for client in range(8)]
        try:
            wait_until(lambda: painted_by("1") >= 100 or any(client.done() for client in clients), "load on version 1")
            publish(two_versions / "shade-2", base_path, "2")
            hosted.wait_for(1, VersionState.END)
            wait_until(lambda: painted_by("2") >= 100 or any(client.done() for client in clients), "load on version 2")
        finally:
            over.set()
        for client in clients:
            client.result(LIMIT_S)
    assert {reply.status for reply in replies} <= {200, 304}
    assert all(agree(reply) for reply in replies)
    digests = {}
    for reply in replies:
        if reply.status == 200:
            digests.setdefault(reply.headers["ETag"], set()).add(hashlib.sha256(reply.body).hexdigest())
    assert {len(found) for found in digests.values()} == {1}
    assert {reply.headers["Ringo-Model-Version"] for reply in replies} == {"1", "2"}
