"""Errors as HTTP problems (RFC 9457), by one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import HTTPException

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
from serving.telemetry.request_log import current_record


@dataclass(frozen=True)
class Answer:
    """The HTTP response to a domain error."""

    status: int
    kind: str
    title: str
    retry_after_s: int | None = None


# A model server that is back is noticed within a second (CHANNEL_OPTIONS of model_client/client.py).
# Overloaded is 503, not 429: the service is at its limit, not this client.
ANSWERS: dict[type[RingoError], Answer] = {
    InvalidRequest: Answer(400, "invalid-request", "The request is not valid"),
    NotAuthenticated: Answer(401, "not-authenticated", "The request lacks the token"),
    UnknownVersion: Answer(404, "unknown-version", "The model server has no such version of the model"),
    ModelMismatch: Answer(502, "model-mismatch", "The model server returned something other than images"),
    ModelUnavailable: Answer(503, "model-unavailable", "No model is ready", retry_after_s=1),
    Stopping: Answer(503, "stopping", "The server is about to end", retry_after_s=1),
    ClientGone: Answer(499, "client-gone", "The client closed the connection"),  # nginx's number; no client sees it
    Overloaded: Answer(503, "overloaded", "The service takes no more work for now", retry_after_s=1),
    ModelTimeout: Answer(504, "model-timeout", "The model server took too long"),
}


def domain_problem(error: RingoError) -> Response:
    """Return the problem of `error`, with Retry-After if a retry may help."""
    answer = ANSWERS[type(error)]
    more: dict[str, object] = {}
    if isinstance(error, InvalidRequest):
        more = {"parameter": error.field, "value": error.value, "allowed": error.allowed}
    current_record().record_failure(error, answer.kind.replace("-", "_"))
    kind = f"urn:ringo:problem:{answer.kind}"
    response = problem(answer.status, kind=kind, title=answer.title, detail=str(error), more=more)
    if isinstance(error, NotAuthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if answer.retry_after_s is not None:
        response.headers["Retry-After"] = str(answer.retry_after_s)
    return response


def http_problem(error: HTTPException) -> Response:
    """Return the problem of an HTTP error, with werkzeug's headers."""
    if error.code is not None and error.code < 500:
        current_record().outcome = error.name.lower().replace(" ", "_")  # not_found
    response = problem(error.code or 500, kind="about:blank", title=error.name, detail=error.description or "")
    response.headers.extend((name, text) for name, text in error.get_headers() if name != "Content-Type")
    return response


def problem(status: int, *, kind: str, title: str, detail: str, more: Mapping[str, object] | None = None) -> Response:
    """Return application/problem+json for the current request, with the members of `more`."""
    members = {
        "type": kind,
        "title": title,
        "status": status,
        "detail": detail,
        "instance": quote(request.script_root + request.path),
        "request_id": current_record().request_id,
        **(more or {}),
    }
    response = Response(json.dumps(members), status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    return response
