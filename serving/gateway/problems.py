"""Errors as HTTP problems (RFC 9457), by one table."""

import json
from collections.abc import Mapping
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import HTTPException

from serving import errors
from serving.telemetry.request_log import current_record

# Status and title of the response to each error.
# Overloaded is 503, not 429: the service is at its limit, not this client.
ANSWERS = {
    errors.InvalidRequest: (400, "The request is not valid"),
    errors.NotAuthenticated: (401, "The request lacks the token"),
    errors.UnknownVersion: (404, "The model server has no such version of the model"),
    errors.ModelMismatch: (502, "The model server returned something other than images"),
    errors.ModelUnavailable: (503, "No model is ready"),
    errors.Stopping: (503, "The server is about to end"),
    errors.ClientGone: (499, "The client closed the connection"),  # nginx's number; no client sees it
    errors.Overloaded: (503, "The service takes no more work for now"),
    errors.ModelTimeout: (504, "The model server took too long"),
}


def domain_problem(error: errors.RingoError) -> Response:
    """Return the problem of `error`, with Retry-After if a retry may help."""
    status, title = ANSWERS[type(error)]
    more: dict[str, object] = {}
    if isinstance(error, errors.InvalidRequest):
        more = {"parameter": error.field, "value": error.value, "allowed": error.allowed}
    current_record().record_failure(error, error.name)
    kind = f"urn:ringo:problem:{error.name.replace('_', '-')}"
    response = problem(status, kind=kind, title=title, detail=str(error), more=more)
    if isinstance(error, errors.NotAuthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
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
