"""From a query to the bytes of its picture: what is kept, what is joined, and what the model is asked for."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cachetools import LRUCache

from serving.errors import Overloaded
from serving.model_client.batcher import PredictBatcher
from serving.model_client.client import VERIFIED, ModelClient
from serving.rendering.encoding import RENDERER_VERSION, Pixels, arrange, encode, encode_animation, resize
from serving.rendering.interpolation import slerp
from serving.rendering.query import Animation, Grid, Morph, Picture, Query, canonical_url
from serving.runtime.single_flight import SingleFlight
from serving.telemetry.request_log import stage, with_current_context

LARGE_PIXELS = 2**18  # one of 512 x 512. From here on, encoding takes up to 30 MB, and eight threads would take 240.
LARGE_WAIT_S = 10.0  # as long as we wait for a model server by default, and twenty times what the largest takes


@dataclass(frozen=True)
class PixelsKey:
    """The name under which the model's own pixels for a seed are kept."""

    fingerprint: str
    version: int
    seed: int


class Renderer:
    """Makes pictures of pinned queries: version, format and seed decided. Threads may share it.

    Up to `cache_bytes` of answers and of the model's own pixels are kept, the longest unused going first. Callers who
    ask for one thing at a time share one making of it, whether or not anything is kept. What is kept, and shared, is
    so under the `mark` of the replica that made it (replica.GoldenCheck): another kind of replica begins anew. Single
    pictures are asked for in at most `model_calls` calls at a time, together where need be.
    """

    def __init__(self, client: ModelClient, model_name: str, *, cache_bytes: int, model_calls: int) -> None:
        self._client = client
        self._batcher = PredictBatcher(
            lambda version, seeds, deadline_s: list(client.generate(version, seeds, deadline_s=deadline_s)),
            max_calls=model_calls,
        )
        self._model_name = model_name
        self._lock = threading.Lock()  # guards the cache
        # Of bytes and arrays: memoryview knows the size of either.
        self._cache: LRUCache[Any, Any] = LRUCache(cache_bytes, getsizeof=lambda made: memoryview(made).nbytes)
        self._flight = SingleFlight[Any, Any]()
        self._large = threading.Lock()  # held while a large picture is encoded

    def cached(self, query: Query, fingerprint: str) -> bytes | None:
        """Return the answer to `query` if it is kept."""
        with self._lock:
            made: bytes | None = self._cache.get((fingerprint, query))
        return made

    def render(self, query: Query, fingerprint: str, *, deadline_s: float = math.inf) -> bytes:
        """Return the encoded picture that `query` asks for, by `deadline_s` of time.monotonic.

        Raises what ModelClient does, and Overloaded.
        """

        def make() -> bytes:
            version, file_format = pinned(query)
            early: list[bytes] = []

            def encode_early(pixels: Pixels) -> Pixels:
                """Encode them while they are at hand, unless that would hold up others."""
                if (query.size or max(pixels.shape)) ** 2 < LARGE_PIXELS:
                    early.append(self._encode(query, file_format, [pixels], deadline_s))
                return pixels

            tiles = self._tiles(query, version, fingerprint, deadline_s, with_current_context(encode_early))
            encoded = early[0] if early else self._encode(query, file_format, tiles, deadline_s)
            self._keep((fingerprint, query), encoded)
            return encoded

        made: bytes = self._flight.do((fingerprint, query), make, deadline_s=deadline_s)
        return made

    def render_many(
        self, queries: Sequence[Picture], fingerprint: str, *, deadline_s: float = math.inf
    ) -> Iterator[bytes]:
        """Yield what `answer` returns for each of `queries`, of one version, in order.

        The model is asked for all of them together; each is encoded when it is wanted. Raises what ModelClient does.
        """
        names = [PixelsKey(fingerprint, pinned(query)[0], seed_of(query)) for query in queries]
        for query, pixels in zip(queries, self._paint(names, deadline_s=deadline_s), strict=True):
            yield self._encode(query, pinned(query)[1], [pixels], deadline_s)

    def facts(self, query: Query) -> dict[str, str]:
        """Return what a PNG says of itself: enough to make it again."""
        return {
            "Software": "Ringo",
            "Model": self._model_name,
            "Picture": canonical_url(query),
            "Renderer": str(RENDERER_VERSION),
        }

    def _encode(self, query: Query, file_format: str, tiles: Sequence[Pixels], deadline_s: float) -> bytes:
        columns, rows = query.tiles
        with self._room(columns * rows * (query.size or max(tiles[0].shape)) ** 2, deadline_s), stage("encode"):
            if query.size is not None:
                tiles = [resize(tile, query.size) for tile in tiles]
            if isinstance(query, Animation):
                return encode_animation(tiles, file_format)
            return encode(arrange(tiles, columns), file_format, self.facts(query))

    @contextlib.contextmanager
    def _room(self, pixels: int, deadline_s: float) -> Iterator[None]:
        """Let one large picture at a time be encoded; raise Overloaded if the others take too long."""
        if pixels < LARGE_PIXELS:
            yield
            return
        wait_s = min(LARGE_WAIT_S, max(0.0, deadline_s - time.monotonic()))
        with stage("queue"):
            entered = self._large.acquire(timeout=wait_s)
        if not entered:
            raise Overloaded(f"Other large pictures have been in the way for {wait_s:.1f} s.")
        try:
            yield
        finally:
            self._large.release()

    def _tiles(
        self, query: Query, version: int, fingerprint: str, deadline_s: float, then: Callable[[Pixels], Pixels]
    ) -> Sequence[Pixels]:
        """Return the model's own pixels of each tile of `query`; a lone one, once painted, goes through `then`."""
        match query:
            case Picture():
                name = PixelsKey(fingerprint, version, seed_of(query))
                paint = lambda: self._paint([name], then, deadline_s=deadline_s)  # noqa: E731
                (pixels,) = self._flight.do(name, paint, deadline_s=deadline_s)
                return [pixels]
            case Grid(seeds=seeds):
                names = [PixelsKey(fingerprint, version, seed) for seed in seeds]
                return self._paint(names, deadline_s=deadline_s)
            case Morph(start, end, frames) | Animation(start, end, frames):
                first, last = self._client.sample(version, [start, end], deadline_s=deadline_s)
                way = [slerp(first, last, frame / (frames - 1)) for frame in range(frames)]
                return list(self._client.paint(version, np.stack(way), deadline_s=deadline_s))

    def _paint(
        self,
        names: Sequence[PixelsKey],
        then: Callable[[Pixels], Pixels] = lambda pixels: pixels,
        *,
        deadline_s: float = math.inf,
    ) -> list[Pixels]:
        """Return what `names`, of one version, stand for; what is not kept is asked for together.

        One picture alone is joined with others, and goes through `then`, unless this replica may let it depend on its
        company.
        """
        with self._lock:
            found = {name: self._cache[name] for name in names if name in self._cache}
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if missing:
            version = missing[0].version
            seeds = [name.seed for name in missing]
            painted: Iterable[Pixels]
            if len(seeds) == 1 and names[0].fingerprint == VERIFIED:
                painted = [self._batcher.predict(version, seeds[0], then, deadline_s=deadline_s)]
            else:
                painted = self._client.generate(version, seeds, deadline_s=deadline_s)
            for name, pixels in zip(missing, painted, strict=True):
                found[name] = self._keep(name, pixels.copy())  # a view would keep the whole batch alive
        return [found[name] for name in names]

    def _keep(self, name: Any, made: Any) -> Any:
        with self._lock, contextlib.suppress(ValueError):  # larger than the whole cache
            self._cache[name] = made
        return made


def pinned(query: Query) -> tuple[int, str]:
    """Return version and format of `query`; raise ValueError if it leaves either open."""
    if query.version is None or query.format is None:
        raise ValueError(f"{query} is not pinned.")
    return query.version, query.format


def seed_of(query: Picture) -> int:
    """Return the seed of `query`; raise ValueError if it is yet to be drawn."""
    if query.seed is None:
        raise ValueError(f"{query} is not pinned.")
    return query.seed
