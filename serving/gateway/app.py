"""The Flask application: routes, response headers, problems (RFC 9457) and request records."""

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.datastructures import EnvironHeaders
from werkzeug.exceptions import BadHost, BadRequest, HTTPException, RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from serving import errors
from serving.errors import InvalidRequest, RingoError
from serving.gateway.openapi import EXTENSIONS, PROBES, SHORT_URLS
from serving.gateway.pages import add_api_description, add_pages, add_probes
from serving.gateway.responses import ImageResponses
from serving.model_client.client import ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.rendering.query import RESOURCES, Picture
from serving.runtime.security import require_token
from serving.settings import Settings
from serving.telemetry.request_log import ANSWERED, NOT_MODIFIED, current_record, record_request

# In every response: any page on the web may show, read and revalidate images.
# Strict-Transport-Security belongs to the proxy (SECURITY.md).
EVERYWHERE = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Content-Disposition, Content-Location, ETag, Retry-After, Ringo-Model-Version, "
    "Ringo-Seed, X-Request-ID",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
# Pages load scripts, styles and images from this origin only, none of them inline.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, If-None-Match, Traceparent, Tracestate, X-Request-ID",
    "Access-Control-Max-Age": "86400",
}
# RFC 3986: an address in brackets, or a name. Werkzeug's own check refuses the name my_service of a container.
HOST = re.compile(r"(\[[0-9a-f:.]+\]|([\w.~!$&'()*+,;=-]|%[0-9a-f]{2})*)(:[0-9]*)?", re.ASCII | re.IGNORECASE)
# Flask's converters of the parameters in the path of a short URL.
CONVERTERS = {"seed": "<seed>", "name": "<text:name>", "format": f"<any({','.join(EXTENSIONS)}):format>"}

# Status and title of the response to each error.
# Overloaded is 503, not 429: the service is at its limit, not this client.
ANSWERS = {
    InvalidRequest: (400, "The request is not valid"),
    errors.NotAuthenticated: (401, "The request lacks the token"),
    errors.UnknownVersion: (404, "The model server has no such version of the model"),
    errors.ModelMismatch: (502, "The model server returned data that does not fit the model"),
    errors.ModelUnavailable: (503, "No model is ready"),
    errors.Stopping: (503, "The server is stopping"),
    errors.ClientGone: (499, "The client closed the connection"),  # nginx's number; a client that half-closes sees it
    errors.Overloaded: (503, "The service is at its limit"),
    errors.ModelTimeout: (504, "The deadline passed"),
}


class TextConverter(BaseConverter):
    """Any text in a path, also with slashes or empty."""

    regex = "(?s:.*)"
    part_isolating = False


class Gateway(Flask):
    """Flask that logs exceptions without paths, which may name persons."""

    def log_exception(self, exc_info: Any) -> None:
        """Log an exception that no error handler knows."""
        self.logger.error("A request failed.", exc_info=exc_info)


def create_app(settings: Settings) -> Flask:
    """Return the gateway; call it after the fork, because it starts a thread."""
    app = Gateway(__name__)
    app.url_map.merge_slashes = False  # it redirects //generate to the Host of the request
    app.url_map.converters["text"] = TextConverter
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)
    monitor = ModelMonitor(client)
    threading.Thread(target=monitor.watch, args=(threading.Event(),), name="monitor", daemon=True).start()
    responses = ImageResponses(settings, client, monitor)
    app.register_error_handler(RingoError, domain_problem)
    app.register_error_handler(HTTPException, http_problem)

    app.before_request(partial(check_request, settings.token))
    short_urls = [(path.format_map(CONVERTERS), Picture) for path in SHORT_URLS]
    for path, resource in [*((resource.path, resource) for resource in RESOURCES), *short_urls]:
        app.add_url_rule(path, resource.path[1:], responses.respond, defaults={"resource": resource})
    add_pages(app, settings, monitor, responses)
    add_api_description(app, settings)
    add_probes(app, monitor, responses)
    app.after_request(complete)
    app.wsgi_app = observing(app.wsgi_app, settings.path_prefix)  # type: ignore[method-assign]
    return app


def check_request(token: str | None) -> Response | None:
    """Answer `OPTIONS *`; refuse invalid Hosts, missing tokens and bodies.

    Raises BadRequest, InvalidRequest, NotAuthenticated or RequestEntityTooLarge.
    """
    if request.environ["SERVER_PROTOCOL"] == "HTTP/1.1" and "Host" not in request.headers:
        raise BadRequest("The request has no Host header, which HTTP/1.1 requires; send one.")
    host = request.headers.get("Host", "")
    if not HOST.fullmatch(host) or isinstance(request.routing_exception, BadHost):  # Werkzeug checks the parts' length
        raise InvalidRequest("Host", host, "an address, or a name with parts of 1 to 63 characters; a port may follow")
    if request.method == "OPTIONS" and request.environ["PATH_INFO"] == "*":
        return Response(headers={"Allow": PREFLIGHT["Access-Control-Allow-Methods"]})
    if request.path not in PROBES and request.method != "OPTIONS":  # a browser's preflight has no token
        require_token(token, request.headers.get("Authorization"))
    has_body = request.content_length or request.headers.get("Transfer-Encoding")
    if has_body and request.routing_exception is None:
        raise RequestEntityTooLarge("The request has a body; send it without one.")
    return None


def complete(response: Response) -> Response:
    """Record the outcome of the request; return `response` with more headers."""
    response.headers.extend(EVERYWHERE)
    if request.method == "OPTIONS":
        response.headers.extend(PREFLIGHT)
    if response.mimetype == "text/html":
        response.headers.update(PAGE_HEADERS)
    record = current_record()
    response.headers.add("X-Request-ID", record.request_id)
    record.resource = request.endpoint or "unknown"
    record.status = response.status_code
    if record.path == "-":
        record.path = quote(re.sub("(/name/).*", r"\1-", request.path, flags=re.DOTALL))  # a name may identify a person
    if response.status_code < 400:
        record.outcome = NOT_MODIFIED if response.status_code == 304 else ANSWERED
    if request.method != "HEAD" and response.status_code != 304:
        record.size_bytes = response.content_length or 0
    return response


def observing(app: Callable[..., Iterable[bytes]], prefix: str) -> Any:
    """Return a WSGI application that records the requests of `app` below `prefix`."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["SCRIPT_NAME"] = prefix
        if f"{environ['PATH_INFO']}/".startswith(f"{prefix}/"):  # else the proxy has removed it
            environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(prefix) or "/"  # no redirect
        headers: Any = EnvironHeaders(environ)  # finds lower-case names, too
        environ.pop("HTTP_IF_MATCH", None)  # resources are read-only; Werkzeug would answer `*` with 412
        with record_request(environ["REQUEST_METHOD"], headers, is_probe=environ["PATH_INFO"] in PROBES):
            return app(environ, start_response)

    return answer


def domain_problem(error: RingoError) -> Response:
    """Return the problem of `error`, with Retry-After if a retry may help."""
    status, title = ANSWERS[type(error)]
    more: dict[str, object] = {}
    if isinstance(error, InvalidRequest):
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
