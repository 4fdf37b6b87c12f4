"""Renderer: from a query to the bytes of its image."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from serving.errors import Overloaded
from serving.model_client.batcher import PredictBatcher
from serving.model_client.client import VERIFIED, ModelClient
from serving.model_client.monitor import GoldenCheck
from serving.rendering.encoding import RENDERER_VERSION, Pixels, arrange, encode, encode_animation, resize
from serving.rendering.query import Animation, Grid, Morph, Picture, Query, canonical_url
from serving.runtime.single_flight import SingleFlight
from serving.telemetry.request_log import ABANDONED_CHECK_S, check_client, stage, with_current_context

# GoldenCheck.model of models/apple/5, and of versions 4 and 3, which a volume may still have.
BUNDLED_MODEL = "13b73dd321b25fd0e4439d158c04fdb7ed3455fae8e8d4a6f15f9b557c46c41e"
VERSION_4 = "5e6c8b459d361e5732ddb08564fdd0d84eba9a8ff86b77eba9c395695e9c03fe"
VERSION_3 = "89937cd2e1c5bbe37152420a8cdd5ffae44e9435ed83e979009a1a832b9c1a25"
# Licences of images by GoldenCheck.model. Model cards state them, too, but not every replica has the card.
LICENCES = dict.fromkeys(
    (BUNDLED_MODEL, VERSION_4, VERSION_3),
    "CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0). Commercial use is allowed, with attribution "
    "(Mihai Oltean, Fruits-360) and under the same licence.",
)
LARGE_PIXELS = 2**18  # 512 x 512: encoding takes up to 30 MB from here on
LARGE_WAIT_S = 10.0  # twenty times the time of the largest image

OnPixels = Callable[[Pixels], Pixels]
Latent = npt.NDArray[np.float32]


class Renderer:
    """Renders queries with a version, a format and a seed; thread-safe.

    An LRU cache of `cache_bytes` holds encoded images and the model's pixels. Concurrent requests for one image share
    its rendering, cached or not. Requests for single images share at most `model_calls` Predict calls at a time.
    All methods raise the errors of ModelClient, and ConnectionChanged if the connection of `check` has ended. Deadlines
    are of time.monotonic.
    """

    def __init__(self, client: ModelClient, model_name: str, *, cache_bytes: int, model_calls: int) -> None:
        self._client = client
        self._batcher = PredictBatcher(self._generate, max_calls=model_calls)
        self._model_name = model_name
        self._lock = threading.Lock()  # guards the cache
        # Images, and pixels of queries without a format, by fingerprint, model and query; memoryview has their size.
        self._cache: LRUCache[Any, Any] = LRUCache(cache_bytes, getsizeof=lambda entry: memoryview(entry).nbytes)
        self._flight = SingleFlight()
        self._large = threading.Lock()  # held while a large image is encoded

    def cached(self, query: Query, fingerprint: str, model: str) -> bytes | None:
        """Return the image of `query` if it is cached."""
        with self._lock:
            encoded: bytes | None = self._cache.get((fingerprint, model, query))
        return encoded

    def render(self, query: Query, check: GoldenCheck, *, deadline_s: float = math.inf) -> bytes:
        """Return the encoded image of `query`; may raise Overloaded, too."""
        key = check.fingerprint, check.model, query

        def render() -> bytes:
            encoded: list[bytes] = []

            def encode_early(pixels: Pixels) -> Pixels:  # of a small image, in the thread that has them
                if (query.size or max(pixels.shape)) ** 2 < LARGE_PIXELS:
                    encoded.append(self._encode(query, [pixels], check, deadline_s))
                return pixels

            tiles = self._tiles(query, check, deadline_s, with_current_context(encode_early))
            image = encoded[0] if encoded else self._encode(query, tiles, check, deadline_s)
            self._keep(key, image)
            return image

        return self._flight.do(key, render, deadline_s=deadline_s)

    def render_many(self, queries: Sequence[Picture], check: GoldenCheck, *, deadline_s: float) -> Iterator[bytes]:
        """Yield the images of `queries` in order, with one Predict call.

        Each image is encoded when the iterator reaches it.
        """
        seeds = [query.seed for query in queries if query.seed is not None]
        for query, pixels in zip(queries, self._pixels(seeds, check, deadline_s), strict=True):
            yield self._encode(query, [pixels], check, deadline_s)

    def _encode(self, query: Query, tiles: Sequence[Pixels], check: GoldenCheck, deadline_s: float) -> bytes:
        columns, rows = query.tiles
        file_format = str(query.format)
        with self._room(columns * rows * (query.size or max(tiles[0].shape)) ** 2, deadline_s), stage("encode"):
            if query.size is not None:
                tiles = [resize(tile, query.size) for tile in tiles]
            if isinstance(query, Animation):
                return encode_animation(tiles, file_format)
            text_chunks = {
                "Software": "Ringo",
                "Model": self._model_name,
                "Picture": canonical_url(query),
                "Renderer": str(RENDERER_VERSION),
            }
            if check.model in LICENCES:
                text_chunks["Copyright"] = LICENCES[check.model]
            return encode(arrange(tiles, columns), file_format, text_chunks)

    @contextlib.contextmanager
    def _room(self, pixels: int, deadline_s: float) -> Iterator[None]:
        """Admit one large image at a time; raise Overloaded after LARGE_WAIT_S."""
        if pixels < LARGE_PIXELS:
            yield
            return
        until_s = min(deadline_s, time.monotonic() + LARGE_WAIT_S)
        with stage("queue"):
            while not self._large.acquire(timeout=min(ABANDONED_CHECK_S, max(0.0, until_s - time.monotonic()))):
                check_client()
                if time.monotonic() >= until_s:
                    raise Overloaded("Other large images are still being encoded; try again later.")
        try:
            yield
        finally:
            self._large.release()

    def _tiles(self, query: Query, check: GoldenCheck, deadline_s: float, on_pixels: OnPixels) -> Sequence[Pixels]:
        """Return the pixels of each tile; one image goes through `on_pixels`."""
        match query:
            case Picture(seed=int(seed)):
                return self._pixels([seed], check, deadline_s, on_pixels)
            case Grid(seeds=seeds):
                return self._pixels(seeds, check, deadline_s)
            case Morph(start, end, frames):  # or its Animation
                first, last = self._client.sample(check.version, [start, end], deadline_s=deadline_s)
                path = [slerp(first, last, frame / (frames - 1)) for frame in range(frames)]
                images = self._client.paint(check.version, np.stack(path), deadline_s=deadline_s)
                self._client.require_connection(check.connection)
                return list(images)
        raise ValueError(f"{query} has no seed.")

    def _pixels(
        self, seeds: Sequence[int], check: GoldenCheck, deadline_s: float, on_pixels: OnPixels = np.asarray
    ) -> list[Pixels]:
        """Return the pixels of each seed, with at most one Predict call.

        On a verified replica a single image shares its call with other requests, and goes through `on_pixels`. On other
        replicas an image may depend on its batch, so a query always has the same one: none of its pixels are cached.
        """
        is_verified = check.fingerprint == VERIFIED
        keys = {seed: (check.fingerprint, check.model, Picture(seed, version=check.version)) for seed in seeds}
        with self._lock:
            found = {seed: self._cache[key] for seed, key in keys.items() if is_verified and key in self._cache}
        missing = [seed for seed in keys if seed not in found]
        if len(missing) == 1 and is_verified:
            rendered = [self._batcher.predict(check, missing[0], on_pixels, deadline_s=deadline_s)]
        else:
            rendered = self._generate(check, missing, deadline_s, is_shared=False) if missing else []
        for seed, pixels in zip(missing, rendered, strict=True):
            found[seed] = self._keep(keys[seed], pixels.copy()) if is_verified else pixels  # a view keeps the batch
        return [found[seed] for seed in seeds]

    def _generate(
        self, check: GoldenCheck, seeds: Sequence[int], deadline_s: float, is_shared: bool = True
    ) -> list[Pixels]:
        images = self._client.generate(check.version, seeds, deadline_s=deadline_s, is_shared=is_shared)
        self._client.require_connection(check.connection)
        return list(images)

    def _keep(self, key: Any, entry: Any) -> Any:
        with self._lock, contextlib.suppress(ValueError):  # larger than the whole cache
            self._cache[key] = entry
        return entry


def slerp(start: Latent, end: Latent, t: float) -> Latent:
    """Return the latent float32[D] at `t` between `start` and `end`.

    At 0 and 1 it is `start` and `end`, bit for bit. Halfway on a straight line a latent would be shorter than those of
    the training (White 2016, "Sampling Generative Networks"). Sums are exact before they are rounded (math.fsum): the
    order of summation, which differs between processors, changes no image.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    cosine = _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if angle == 0.0:
        return start
    sine = math.sin(angle)
    return np.asarray(math.sin((1.0 - t) * angle) / sine * a + math.sin(t * angle) / sine * b, np.float32)


def _dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return math.fsum(a * b)
