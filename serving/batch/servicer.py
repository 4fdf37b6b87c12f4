"""The gRPC service: seeds in, images out, one by one or as a stream; errors with google.rpc details.

Limits, bytes, errors and the model client are the gateway's own modules.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from werkzeug.datastructures import MultiDict

from serving.errors import (
    ClientGone,
    InvalidRequest,
    ModelMismatch,
    ModelTimeout,
    ModelUnavailable,
    NotAuthenticated,
    Overloaded,
    RingoError,
    Stopping,
    UnknownVersion,
)
from serving.model_client.monitor import GoldenCheck, ModelMonitor
from serving.pb.ringo.v1 import picture_service_pb2, picture_service_pb2_grpc
from serving.rendering.encoding import MIMETYPES, RENDERER_VERSION
from serving.rendering.query import MAX_PIXELS, SEED, Picture, check_canvas, read_query
from serving.rendering.renderer import Renderer
from serving.runtime.limits import ConcurrencyLimit
from serving.runtime.security import require_token
from serving.telemetry.metrics import PICTURES
from serving.telemetry.request_log import (
    ANSWERED,
    CLIENT_GONE,
    FAILED,
    REQUEST_ID,
    RequestRecord,
    record_request,
    record_stage,
    with_current_context,
)

_DESCRIPTOR = picture_service_pb2.DESCRIPTOR.services_by_name["PictureService"]
SERVICE, METHODS = _DESCRIPTOR.full_name, tuple(_DESCRIPTOR.methods_by_name)
UNKNOWN = "unknown"  # any method that does not exist
MAX_SEEDS = 100_000  # of one call: as varints at most 900 kB, which MAX_REQUEST_BYTES of server.py lets through
MAX_SINGLES = 64  # Generate calls at a time: the last of them waits 2 s at 30 ms a picture
BATCH_ROWS = 64  # of one Predict call: 1.11 times as fast as 16, 1.05 as 32
BATCHES_AHEAD = 3  # of one stream: two at the model server, while one is encoded and sent
TIMERS_S = 0.01  # a timer set to a client's deadline may end so much earlier, by gRPC's clock

HANDLER_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

log = logging.getLogger(__name__)
Message = Any  # the generated classes carry no types


@dataclass(frozen=True)
class Answer:
    """The gRPC status of a domain error."""

    code: grpc.StatusCode
    reason: str  # of google.rpc.ErrorInfo
    retry_after_s: int | None = None  # of google.rpc.RetryInfo


ANSWERS: dict[type[RingoError], Answer] = {
    InvalidRequest: Answer(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    NotAuthenticated: Answer(grpc.StatusCode.UNAUTHENTICATED, "NOT_AUTHENTICATED"),
    UnknownVersion: Answer(grpc.StatusCode.NOT_FOUND, "UNKNOWN_VERSION"),
    ModelMismatch: Answer(grpc.StatusCode.INTERNAL, "MODEL_MISMATCH"),
    ModelUnavailable: Answer(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE", retry_after_s=1),
    ClientGone: Answer(grpc.StatusCode.CANCELLED, "CLIENT_GONE"),
    Overloaded: Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=1),
    ModelTimeout: Answer(grpc.StatusCode.DEADLINE_EXCEEDED, "MODEL_TIMEOUT"),
    Stopping: Answer(grpc.StatusCode.UNAVAILABLE, "STOPPING", retry_after_s=1),
}

# Names of the parameters of rendering/query.py in a request.
FIELDS = MappingProxyType(
    {
        "seed": "seed",
        "size": "options.size",
        "format": "options.format",
        "version": "options.model_version",
    }
)
FORMATS = MappingProxyType(
    {
        picture_service_pb2.FORMAT_UNSPECIFIED: "png",
        picture_service_pb2.FORMAT_PNG: "png",
        picture_service_pb2.FORMAT_WEBP: "webp",
        picture_service_pb2.FORMAT_JPEG: "jpeg",
    }
)


class PictureService(picture_service_pb2_grpc.PictureServiceServicer):
    """Answers ringo.v1.PictureService. Calls block: each takes a thread of the server."""

    def __init__(
        self, monitor: ModelMonitor, renderer: Renderer, model_name: str, *, threads: int, max_streams: int
    ) -> None:
        self._monitor = monitor
        self._renderer = renderer
        self._model_name = model_name
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="paint")  # of all streams together
        self._singles = ConcurrencyLimit(MAX_SINGLES, "single pictures")
        self._streams = ConcurrencyLimit(max_streams, "streams")
        self._stopping = threading.Event()

    def Generate(self, request: Message, context: grpc.ServicerContext) -> Message:  # noqa: N802 (the service's name)
        """Return one image before the client's deadline."""
        with answering(context, "Generate") as record, self._singles.slot():
            check_known(request, request.options)
            if not request.HasField("seed"):
                raise InvalidRequest("seed", None, SEED.allowed)
            query, check = self._pinned(request.options, request.seed, deadline_s(context))
            record.model_version = query.version
            if not context.is_active():
                raise ClientGone("The client cancelled the call before the model was asked.")
            until_s = deadline_s(context)
            _, (made,) = self._monitor.with_check(
                check.version,
                lambda check: list(self._renderer.render_many([query], check, deadline_s=until_s)),
                deadline_s=until_s,
            )
            record.size_bytes = len(made)
            return picture_service_pb2.GenerateResponse(picture=picture(query, made))

    def GenerateBatch(self, request: Message, context: grpc.ServicerContext) -> Iterator[Message]:  # noqa: N802
        """Yield one image per seed, in order; at most BATCHES_AHEAD batches are rendered ahead."""
        with answering(context, "GenerateBatch") as record, self._streams.slot():
            check_known(request, request.range, request.list, request.options)
            seeds = read_seeds(request)
            query, check = self._pinned(request.options, seeds[0], deadline_s(context))
            record.model_version, record.pictures = query.version, 0
            for response in self._stream(seeds, query, check, context):
                record.pictures += 1
                record.size_bytes += len(response.picture.data)
                yield response

    def DescribeModel(self, request: Message, context: grpc.ServicerContext) -> Message:  # noqa: N802
        """Return the model's name, versions and replica state, as /about does."""
        with answering(context, "DescribeModel"):
            versions = self._monitor.refresh()
            check = self._monitor.golden_check(versions[-1], deadline_s=deadline_s(context))
            return picture_service_pb2.DescribeModelResponse(
                name=self._model_name,
                model_versions=versions,
                size=check.size,
                renderer=RENDERER_VERSION,
                replica=check.verdict,
            )

    def drain(self, timeout_s: float, *, grace_s: float) -> None:
        """Accept no more streams; those under way have `timeout_s`, then they end after their current batches.

        Those have `grace_s`; single images are accepted until then, and have `grace_s`, too.
        """
        self._streams.close(timeout_s)
        self._stopping.set()
        self._streams.close(grace_s)
        self._singles.close(grace_s)

    def close(self) -> None:
        """Render nothing more, and wait for calls under way."""
        self._stopping.set()
        self._threads.shutdown()

    def _pinned(self, options: Message, seed: int, until_s: float) -> tuple[Picture, GoldenCheck]:
        """Return the query of `seed` with its version decided, and the check of that version, by `until_s`."""
        texts = {"seed": str(seed), "format": FORMATS.get(options.format, str(options.format))}
        for name in ("size", "model_version"):
            if options.HasField(name):
                texts[name.removeprefix("model_")] = str(getattr(options, name))
        try:
            query = read_query(Picture, MultiDict(texts))
            self._monitor.require_model()
            version = self._monitor.refresh()[-1] if query.version is None else query.version
            check = self._monitor.golden_check(version, deadline_s=until_s)
            if query.size is None:
                check_canvas(query, check.size)
        except InvalidRequest as error:
            raise InvalidRequest(FIELDS[error.field], error.value, error.allowed) from error
        return replace(query, version=version), check

    def _stream(
        self, seeds: Sequence[int], query: Picture, check: GoldenCheck, context: grpc.ServicerContext
    ) -> Iterator[Message]:
        ended, until_s = threading.Event(), deadline_s(context)
        if not context.add_callback(ended.set):  # cancelled already
            return

        def render(queries: Sequence[Picture], check: GoldenCheck) -> list[Message]:
            responses: list[Message] = []
            if not ended.is_set():
                images = self._renderer.render_many(queries, check, deadline_s=until_s)
                for one, image in zip(queries, images, strict=True):
                    if ended.is_set():
                        break
                    responses.append(picture_service_pb2.GenerateBatchResponse(picture=picture(one, image)))
            return responses

        def make(part: Sequence[int], submitted_s: float) -> list[Message]:
            record_stage("queue", time.monotonic() - submitted_s)
            queries = [replace(query, seed=seed) for seed in part]
            return self._monitor.with_check(check.version, partial(render, queries), deadline_s=until_s)[1]

        rows, first = batch_rows(query.size or check.size), 0
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


class TokenInterceptor(grpc.ServerInterceptor):
    """Refuses calls without `token` before it reads the request; health needs none."""

    def __init__(self, token: str, *, open_to_all: str) -> None:
        self._token = token
        self._open_to_all = f"/{open_to_all}/"

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the handler of the call, or one that refuses it."""
        if not handler_call_details.method.startswith(self._open_to_all):
            try:
                require_token(self._token, dict(handler_call_details.invocation_metadata).get("authorization"))
            except NotAuthenticated as error:
                return refusing(error, handler_call_details.method)
        return continuation(handler_call_details)


class WellFormedInterceptor(grpc.ServerInterceptor):
    """Refuses bytes that are no message of the API; gRPC itself would log a traceback for each."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the handler of the call, if any, with a check in front."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        (kind,) = [kind for kind in HANDLER_KINDS if getattr(handler, kind) is not None]
        parse, respond = handler.request_deserializer, getattr(handler, kind)

        def read(data: bytes) -> Message | DecodeError:
            try:
                return parse(data)
            except DecodeError as error:
                return error

        def checked(request: Message | DecodeError, context: grpc.ServicerContext) -> Message:
            if isinstance(request, DecodeError):
                allowed = "a message as ringo/v1/picture_service.proto defines it"
                with answering(context, known_method(handler_call_details.method)):
                    raise InvalidRequest("message", "not shown", allowed)
            return request

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if handler.request_streaming:
                return respond((checked(one, context) for one in request), context)
            return respond(checked(request, context), context)

        return handler._replace(request_deserializer=read, **{kind: answer})


def refusing(error: RingoError, path: str) -> grpc.RpcMethodHandler:
    """Return a handler of the method at `path` that ends each call with `error`."""

    def refuse(_: object, context: grpc.ServicerContext) -> None:
        with answering(context, known_method(path)):
            raise error

    return grpc.stream_stream_rpc_method_handler(refuse)  # fits every method: it waits for no request


def known_method(path: str) -> str:
    """Return the name of the method at `path`; UNKNOWN if it does not exist."""
    method = path.removeprefix(f"/{SERVICE}/")
    return method if method in METHODS else UNKNOWN


@contextmanager
def answering(context: grpc.ServicerContext, method: str) -> Iterator[RequestRecord]:
    """Record the call, and end it with the status of what the `with` block raises."""
    with record_request("POST", dict(context.invocation_metadata())) as record:  # what gRPC is, over HTTP
        record.resource, record.path = method, f"/{SERVICE}/{method}"
        with suppress(grpc.RpcError):  # cancelled already
            context.send_initial_metadata(((REQUEST_ID, record.request_id),))
        code, record.outcome = grpc.StatusCode.CANCELLED, CLIENT_GONE  # unless it comes to another end
        try:
            yield record
            if context.is_active():
                code, record.outcome = grpc.StatusCode.OK, ANSWERED
        except RingoError as error:
            code = ANSWERS[type(error)].code
            in_time = float(context.time_remaining()) > TIMERS_S
            record.record_failure(error, ANSWERS[type(error)].reason.lower() if in_time else CLIENT_GONE)
            context.abort_with_status(status_of(error))
        except Exception:
            code, record.outcome = grpc.StatusCode.INTERNAL, FAILED
            log.exception("%s failed.", method)
            context.abort(code, "The server failed; its log says why.")
        finally:
            record.status = code.name


def status_of(error: RingoError) -> grpc.Status:
    """Return the status of `error`, with its google.rpc details."""
    answer = ANSWERS[type(error)]
    status = status_pb2.Status(code=answer.code.value[0], message=str(error))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=answer.reason, domain="ringo"))
    if isinstance(error, InvalidRequest):
        violation = {"field": error.field, "description": f"Allowed is {error.allowed}."}
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if answer.retry_after_s is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=answer.retry_after_s)))
    return rpc_status.to_status(status)


def check_known(*messages: Message) -> None:
    """Raise InvalidRequest for unknown fields: a later API's options must not be ignored silently."""
    for message in messages:
        for unknown in UnknownFieldSet(message):
            known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
            name = message.DESCRIPTOR.name
            raise InvalidRequest(f"{name}.{unknown.field_number}", "set", f"in {name} only {known}")


def read_seeds(request: Message) -> Sequence[int]:
    """Return the seeds of a GenerateBatchRequest, in order; raise InvalidRequest."""
    match request.WhichOneof("which"):
        case "range":
            start, end = request.range.start, request.range.end
            check_seed("range.start", start)
            if not 0 < end - start <= MAX_SEEDS:
                raise InvalidRequest("range.end", str(end), f"more than range.start, {start}, by at most {MAX_SEEDS}")
            return range(start, end)
        case "list":
            seeds = tuple(request.list.seeds)
            if not 0 < len(seeds) <= MAX_SEEDS:
                raise InvalidRequest("list.seeds", f"{len(seeds)} seeds", f"1 to {MAX_SEEDS} seeds")
            lowest = min(seeds)  # nothing that fits into int64 is too high
            check_seed(f"list.seeds[{seeds.index(lowest)}]", lowest)
            return seeds
        case _:
            raise InvalidRequest("which", None, "one of range and list")


def check_seed(field: str, seed: int) -> None:
    """Raise InvalidRequest, naming `field`, if there is no such seed."""
    try:
        SEED.read(str(seed))
    except ValueError:
        raise InvalidRequest(field, str(seed), SEED.allowed) from None


def batch_rows(size: int) -> int:
    """Return the batch size for images of `size` pixels: at most MAX_PIXELS in all."""
    return max(1, min(BATCH_ROWS, MAX_PIXELS // size**2))


def deadline_s(context: grpc.ServicerContext) -> float:
    """Return the client's deadline by time.monotonic."""
    return time.monotonic() + float(context.time_remaining())


def picture(query: Picture, encoded: bytes) -> Message:
    """Return the message of one image."""
    PICTURES.labels("model").inc()
    return picture_service_pb2.Picture(
        seed=query.seed,
        data=encoded,
        sha256=hashlib.sha256(encoded).digest(),
        model_version=query.version,
        media_type=MIMETYPES[str(query.format)],
    )
