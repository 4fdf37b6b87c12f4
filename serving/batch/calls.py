"""One gRPC call: its record, and the status of its error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

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
from serving.pb.ringo.v1 import picture_service_pb2
from serving.telemetry.request_log import ANSWERED, CLIENT_GONE, FAILED, REQUEST_ID, RequestRecord, record_request

_DESCRIPTOR = picture_service_pb2.DESCRIPTOR.services_by_name["PictureService"]
SERVICE, METHODS = _DESCRIPTOR.full_name, tuple(_DESCRIPTOR.methods_by_name)
UNKNOWN = "unknown"  # any method that does not exist
TIMERS_S = 0.01  # a timer set to a client's deadline may end so much earlier, by gRPC's clock

log = logging.getLogger(__name__)


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


def known_method(path: str) -> str:
    """Return the name of the method at `path`, or UNKNOWN."""
    method = path.removeprefix(f"/{SERVICE}/")
    return method if method in METHODS else UNKNOWN


@contextmanager
def answering(context: grpc.ServicerContext, method: str) -> Iterator[RequestRecord]:
    """Record the call; end it with the status of its error."""
    with record_request("POST", dict(context.invocation_metadata())) as record:  # gRPC is HTTP's POST
        record.resource, record.path = method, f"/{SERVICE}/{method}"
        with suppress(grpc.RpcError):  # cancelled already
            context.send_initial_metadata(((REQUEST_ID, record.request_id),))
        code, record.outcome = grpc.StatusCode.CANCELLED, CLIENT_GONE  # until another outcome is known
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
