"""Interceptors: refusals of calls before the service reads them."""

from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from serving.batch.calls import answering, known_method
from serving.errors import InvalidRequest, NotAuthenticated, RingoError
from serving.runtime.security import require_token


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
                refusal = partial(refuse, error, handler_call_details.method)
                return grpc.stream_stream_rpc_method_handler(refusal)  # fits every method: it waits for no request
        return continuation(handler_call_details)


class WellFormedInterceptor(grpc.ServerInterceptor):
    """Refuses bytes that are no message; gRPC would log a traceback."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the handler of the call, if any, after a check."""
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
                refuse(InvalidRequest("message", "not shown", allowed), handler_call_details.method, request, context)
            return respond(request, context)

        return handler._replace(request_deserializer=read, **{kind: answer})


def refuse(error: RingoError, path: str, _request: object, context: grpc.ServicerContext) -> None:
    """End a call of `path` with `error`, by an exception of gRPC's own."""
    with answering(context, known_method(path)):
        raise error
