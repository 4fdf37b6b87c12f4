"""The interceptor: refusals of calls before the service reads them."""

from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health

from serving.batch.calls import SERVICE, answering
from serving.errors import InvalidRequest, NotAuthenticated, RingoError
from serving.runtime.security import require_token


class RefusingInterceptor(grpc.ServerInterceptor):
    """Refuses calls without `token`, except health checks, and bytes that are no message.

    gRPC itself would read the request first, and log a traceback for such bytes.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the handler of the call after its checks, if any, or one that refuses it."""
        path = handler_call_details.method
        if not path.startswith(f"/{health.SERVICE_NAME}/"):
            try:
                require_token(self._token, dict(handler_call_details.invocation_metadata).get("authorization"))
            except NotAuthenticated as error:
                refusal = partial(refuse, error, path)
                return grpc.stream_stream_rpc_method_handler(refusal)  # fits every method: it waits for no request
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:  # reflection's
            return handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        parse, respond = handler.request_deserializer, getattr(handler, kind)

        def read(data: bytes) -> Message | DecodeError:
            try:
                return parse(data)
            except DecodeError as error:
                return error

        def answer(request: Message | DecodeError, context: grpc.ServicerContext) -> Any:
            if isinstance(request, DecodeError):
                allowed = "a message as ringo/v1/picture_service.proto defines it"
                refuse(InvalidRequest("message", "not shown", allowed), path, request, context)
            return respond(request, context)

        return handler._replace(request_deserializer=read, **{kind: answer})


def refuse(error: RingoError, path: str, _request: object, context: grpc.ServicerContext) -> None:
    """End a call of `path` with `error`, by an exception of gRPC's own."""
    with answering(context, path.removeprefix(f"/{SERVICE}/")):
        raise error
