"""One gRPC call: its record, its refusal, and the status of errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health
from grpc_status import rpc_status

from serving import errors
from serving.pb.ringo.v1 import picture_service_pb2
from serving.runtime.limits import ConcurrencyLimit
from serving.runtime.security import require_token
from serving.telemetry.request_log import ANSWERED, CLIENT_GONE, FAILED, REQUEST_ID, RequestRecord, record_request

_DESCRIPTOR = picture_service_pb2.DESCRIPTOR.services_by_name["PictureService"]
SERVICE, METHODS = _DESCRIPTOR.full_name, tuple(_DESCRIPTOR.methods_by_name)
MAX_REFLECTIONS = 4  # calls at a time: each holds a thread until its client ends it
TIMERS_S = 0.01  # a timer set to a client's deadline may end this much earlier, by gRPC's clock

log = logging.getLogger(__name__)

# The gRPC status of each error.
CODES = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.UnknownVersion: grpc.StatusCode.NOT_FOUND,
    errors.ModelMismatch: grpc.StatusCode.INTERNAL,
    errors.ModelUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ClientGone: grpc.StatusCode.CANCELLED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ModelTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Stopping: grpc.StatusCode.UNAVAILABLE,
}


@contextmanager
def answering(context: grpc.ServicerContext, method: str) -> Iterator[RequestRecord]:
    """Record the call; end it with the status of its error."""
    with record_request("POST", dict(context.invocation_metadata())) as record:  # gRPC sends POST
        record.is_abandoned = lambda: not context.is_active()
        record.resource = method if method in METHODS else "unknown"
        record.path = f"/{SERVICE}/{record.resource}"
        with suppress(grpc.RpcError):  # cancelled already
            context.send_initial_metadata(((REQUEST_ID, record.request_id),))
        code, record.outcome = grpc.StatusCode.CANCELLED, CLIENT_GONE  # until another outcome is known
        try:
            yield record
            if context.is_active():
                code, record.outcome = grpc.StatusCode.OK, ANSWERED
        except errors.RingoError as error:
            code = CODES[type(error)]
            in_time = float(context.time_remaining()) > TIMERS_S
            record.record_failure(error, error.name if in_time else CLIENT_GONE)
            context.abort_with_status(status_of(error))
        except Exception:
            code, record.outcome = grpc.StatusCode.INTERNAL, FAILED
            log.exception("%s failed.", method)
            context.abort(code, "The server failed; its log says why.")
        finally:
            record.status = code.name


def status_of(error: errors.RingoError) -> grpc.Status:
    """Return the status of `error`, with its google.rpc details."""
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=str(error))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.name.upper(), domain="ringo"))
    if isinstance(error, errors.InvalidRequest):
        violation = {"field": error.field, "description": f"Allowed is {error.allowed}."}
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=error.retry_after_s)))
    return rpc_status.to_status(status)


class RefusingInterceptor(grpc.ServerInterceptor):
    """Refuses calls without `token`, bytes that are no message, and too many reflection calls.

    Health checks need no token. gRPC itself would read the request first, and log a traceback for such bytes.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._reflections = ConcurrencyLimit(MAX_REFLECTIONS, "reflection calls")

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the handler of the call, or one that refuses it."""
        path = handler_call_details.method
        if not path.startswith(f"/{health.SERVICE_NAME}/"):
            try:
                require_token(self._token, dict(handler_call_details.invocation_metadata).get("authorization"))
            except errors.NotAuthenticated as error:
                refusal = partial(refuse, error, path)
                return grpc.stream_stream_rpc_method_handler(refusal)  # fits every method: it waits for no request
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        if handler.request_streaming:  # reflection's
            return handler._replace(stream_stream=partial(self._reflect, handler.stream_stream, path))
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        parse, respond = handler.request_deserializer, getattr(handler, kind)

        def read(data: bytes) -> Message | DecodeError:
            try:
                return parse(data)
            except DecodeError as error:
                return error

        @wraps(respond)  # gRPC finds the threads of Watch among its attributes
        def answer(request: Message | DecodeError, context: grpc.ServicerContext) -> Any:
            if isinstance(request, DecodeError):
                allowed = "a message as ringo/v1/picture_service.proto defines it"
                refuse(errors.InvalidRequest("message", "not shown", allowed), path, request, context)
            return respond(request, context)

        return handler._replace(request_deserializer=read, **{kind: answer})

    def _reflect(self, respond: Any, path: str, requests: Any, context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            with self._reflections.slot(lambda: not context.is_active()):
                yield from respond(requests, context)
        except errors.Overloaded as error:
            refuse(error, path, requests, context)


def refuse(error: errors.RingoError, path: str, _request: object, context: grpc.ServicerContext) -> None:
    """End a call of `path` with `error`, by an exception of gRPC."""
    with answering(context, path.removeprefix(f"/{SERVICE}/")):
        raise error
