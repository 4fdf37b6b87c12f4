"""The gRPC service: seeds and options in, images out, single or streamed.

The modules for limits, encoding, errors and the model client are those of the gateway.
"""

import hashlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice, takewhile

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from werkzeug.datastructures import MultiDict

from serving.batch.calls import answering
from serving.errors import InvalidRequest, Stopping
from serving.model_client.monitor import GoldenCheck, ModelMonitor
from serving.pb.ringo.v1 import picture_service_pb2 as pb
from serving.pb.ringo.v1 import picture_service_pb2_grpc
from serving.rendering.encoding import MIMETYPES, RENDERER_VERSION
from serving.rendering.query import MAX_PIXELS, SEED, Picture, read_query
from serving.rendering.renderer import Renderer
from serving.runtime.limits import ConcurrencyLimit
from serving.telemetry.metrics import PICTURES
from serving.telemetry.request_log import check_client, record_stage, with_current_context

MAX_SINGLES = 64  # Generate calls at a time: the last of them waits 2 s at 30 ms an image
BATCH_ROWS = 64  # of one Predict call: 1.11 times as fast as 16, 1.05 as 32
MAX_SEEDS = 100_000  # of one call: as varints at most 900 kB, which MAX_REQUEST_BYTES of server.py lets through
BATCHES_AHEAD = 3  # of one stream: two at the model server, while one is encoded and sent

FORMATS = {pb.FORMAT_UNSPECIFIED: "png", pb.FORMAT_PNG: "png", pb.FORMAT_WEBP: "webp", pb.FORMAT_JPEG: "jpeg"}


class PictureService(picture_service_pb2_grpc.PictureServiceServicer):
    """Answers ringo.v1.PictureService. Calls block: each takes a thread of the server."""

    def __init__(
        self, monitor: ModelMonitor, renderer: Renderer, model_name: str, *, threads: int, max_streams: int
    ) -> None:
        self._monitor = monitor
        self._renderer = renderer
        self._model_name = model_name
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="paint")  # of all streams together
        self._singles = ConcurrencyLimit(MAX_SINGLES, "single images")
        self._streams = ConcurrencyLimit(max_streams, "streams")
        self._stopping = threading.Event()

    def Generate(self, request: Message, context: grpc.ServicerContext) -> Message:  # noqa: N802 (the service's name)
        """Return one image before the client's deadline."""
        with answering(context, "Generate") as record, self._singles.slot(record.is_abandoned):
            check_known(request, request.options)
            until_s = deadline_s(context)
            query = read_picture(request.options, read_seed(request))

            def render(check: GoldenCheck) -> bytes:
                record.model_version = check.version
                check_client()
                return self._renderer.render(replace(query, version=check.version), check, deadline_s=until_s)

            self._monitor.require_model()
            check, made = self._monitor.with_check(query.version, render, deadline_s=until_s)
            record.size_bytes = len(made)
            return pb.GenerateResponse(picture=picture(replace(query, version=check.version), made))

    def GenerateBatch(self, request: Message, context: grpc.ServicerContext) -> Iterator[Message]:  # noqa: N802
        """Yield one image per seed, in order, rendered up to BATCHES_AHEAD ahead."""
        with answering(context, "GenerateBatch") as record, self._streams.slot(record.is_abandoned):
            check_known(request, request.range, request.list, request.options)
            seeds = read_seeds(request)
            query = read_picture(request.options, seeds[0])

            def begin(check: GoldenCheck) -> Iterator[Message]:
                record.model_version, record.pictures = check.version, 0
                stream = self._stream(seeds, replace(query, version=check.version), check, context)
                return chain(list(islice(stream, 1)), stream)  # the version stays after the first image

            self._monitor.require_model()
            _, responses = self._monitor.with_check(query.version, begin, deadline_s=deadline_s(context))
            for count, response in enumerate(responses, 1):
                record.pictures = count
                record.size_bytes += len(response.picture.data)
                yield response

    def DescribeModel(self, request: Message, context: grpc.ServicerContext) -> Message:  # noqa: N802
        """Return the model's name, versions and replica state, as /about does."""
        with answering(context, "DescribeModel"):
            versions = self._monitor.refresh()
            check = self._monitor.golden_check(versions[-1], deadline_s=deadline_s(context))
            state = {"size": check.size, "renderer": RENDERER_VERSION, "replica": check.verdict}
            return pb.DescribeModelResponse(name=self._model_name, model_versions=versions, **state)

    def drain(self, timeout_s: float, *, grace_s: float) -> None:
        """Accept no more streams; end open ones after `timeout_s`.

        The current batches of these streams have `grace_s` more. Single images are accepted until the streams have
        ended, and then have `grace_s`, too.
        """
        self._streams.close(timeout_s)
        self._stopping.set()
        self._streams.close(grace_s)
        self._singles.close(grace_s)

    def close(self) -> None:
        """Render nothing more, and wait for calls under way."""
        self._stopping.set()
        self._threads.shutdown()

    def _stream(
        self, seeds: Sequence[int], query: Picture, check: GoldenCheck, context: grpc.ServicerContext
    ) -> Iterator[Message]:
        ended, until_s = threading.Event(), deadline_s(context)
        if not context.add_callback(ended.set):  # cancelled already
            return

        def render(queries: Sequence[Picture], check: GoldenCheck) -> list[Message]:
            if ended.is_set():
                return []
            images = self._renderer.render_many(queries, check, deadline_s=until_s)
            rendered = zip(queries, takewhile(lambda _: not ended.is_set(), images), strict=False)
            return [pb.GenerateBatchResponse(picture=picture(*one)) for one in rendered]

        def make(part: Sequence[int], submitted_s: float) -> list[Message]:
            record_stage("queue", time.monotonic() - submitted_s)
            queries = [replace(query, seed=seed) for seed in part]
            return self._monitor.with_check(check.version, partial(render, queries), deadline_s=until_s)[1]

        rows, first = max(1, min(BATCH_ROWS, MAX_PIXELS // (query.size or check.size) ** 2)), 0
        ahead: deque[Future[list[Message]]] = deque()
        try:
            while (ahead or first < len(seeds)) and not ended.is_set():
                while first < len(seeds) and len(ahead) < BATCHES_AHEAD and not self._stopping.is_set():
                    part = seeds[first : first + rows]
                    ahead.append(self._threads.submit(with_current_context(make), part, time.monotonic()))
                    first += rows
                if not ahead:
                    raise Stopping("This server is stopping; continue from the next seed on another one.")
                yield from ahead.popleft().result()
        finally:
            ended.set()


def deadline_s(context: grpc.ServicerContext) -> float:
    """Return the client's deadline by time.monotonic, infinity without one."""
    left_s = float(context.time_remaining())  # 292 years without a deadline: more than a lock can wait for
    return math.inf if left_s > threading.TIMEOUT_MAX else time.monotonic() + left_s


def picture(query: Picture, encoded: bytes) -> Message:
    """Return the message of one image."""
    PICTURES.labels("model").inc()
    content = {"data": encoded, "sha256": hashlib.sha256(encoded).digest(), "media_type": MIMETYPES[str(query.format)]}
    return pb.Picture(seed=query.seed, model_version=query.version, **content)


def check_known(*messages: Message) -> None:
    """Raise InvalidRequest for unknown fields, which a later API may have."""
    for message in messages:
        for unknown in UnknownFieldSet(message):
            known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
            name = message.DESCRIPTOR.name
            raise InvalidRequest(f"{name}.{unknown.field_number}", "set", f"only {known}", "is unknown; leave it out")


def read_picture(options: Message, seed: int) -> Picture:
    """Return the query of `seed` with `options`; raise InvalidRequest."""
    texts = {"seed": str(seed), "format": FORMATS.get(options.format, str(options.format))}
    for name in ("size", "model_version"):
        if options.HasField(name):
            texts[name.removeprefix("model_")] = str(getattr(options, name))
    try:
        return read_query(Picture, MultiDict(texts))
    except InvalidRequest as error:
        name = "model_version" if error.field == "version" else error.field
        raise InvalidRequest(f"options.{name}", error.value, error.allowed, error.fault) from error


def read_seed(request: Message) -> int:
    """Return the seed of a GenerateRequest; raise InvalidRequest without one."""
    texts = {name: str(getattr(request, name)) for name in ("seed", "name") if request.HasField(name)}
    seed = read_query(Picture, MultiDict(texts)).seed
    if seed is None:
        raise InvalidRequest("seed", None, SEED.allowed)
    return seed


def read_seeds(request: Message) -> Sequence[int]:
    """Return the seeds of a GenerateBatchRequest, in order; raise InvalidRequest."""
    match request.WhichOneof("which"):
        case "range":
            start, end = request.range.start, request.range.end
            if start < 0:
                raise InvalidRequest("range.start", str(start), SEED.allowed)
            if not 0 < end - start <= MAX_SEEDS:
                raise InvalidRequest("range.end", str(end), f"a whole number from {start + 1} to {start + MAX_SEEDS}")
            return range(start, end)
        case "list":
            seeds = tuple(request.list.seeds)
            if not 0 < len(seeds) <= MAX_SEEDS:
                raise InvalidRequest("list.seeds", f"{len(seeds)} seeds", f"1 to {MAX_SEEDS} seeds")
            lowest = min(seeds)
            if lowest < 0:
                raise InvalidRequest(f"list.seeds[{seeds.index(lowest)}]", str(lowest), SEED.allowed)
            return seeds
        case _:
            raise InvalidRequest("which", None, "one of range and list")
