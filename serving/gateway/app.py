"""The HTTP edge, a Flask application: its routes, what all answers carry, and what is told of each request."""

import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, jsonify, render_template, request
from markupsafe import Markup, escape
from werkzeug.exceptions import RequestEntityTooLarge

from serving.errors import ModelTimeout, ModelUnavailable, Overloaded
from serving.gateway.gallery import render_gallery
from serving.gateway.openapi import build_openapi
from serving.gateway.problems import answer_with_problems
from serving.gateway.responses import REVALIDATE, ImageResponses
from serving.model_client.client import ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.rendering.encoding import RENDERER_VERSION
from serving.rendering.query import RESOURCES
from serving.runtime.security import require_token
from serving.settings import Settings
from serving.telemetry.request_log import ANSWERED, NOT_MODIFIED, current_record, record_request

PROBES = ("/livez", "/readyz")  # need no token

# Pages and what they load come from here alone; there is no inline script or style.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Everything else loads nothing, wherever it is opened.
ANSWER_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
# Pictures are for any page on the web to show, read and revalidate.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Content-Disposition, Content-Location, ETag, Retry-After, Ringo-Model-Version, "
    "Ringo-Seed, X-Request-ID",
}
# Of every response, whoever makes it. What HTTPS there is, and for how long, is for who runs it to promise (HSTS).
EVERYWHERE = CORS | {
    "Content-Security-Policy": ANSWER_POLICY,
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, If-None-Match, Traceparent, Tracestate, X-Request-ID",
    "Access-Control-Max-Age": "86400",
}


# What a request is known by, here and elsewhere; as WSGI names them, and as they are.
OBSERVED_HEADERS = {
    "HTTP_X_REQUEST_ID": "x-request-id",
    "HTTP_TRACEPARENT": "traceparent",
    "HTTP_TRACESTATE": "tracestate",
}


def create_app(settings: Settings) -> Flask:
    """Return the gateway with a channel and a thread of its own: call it in the process that answers, after a fork."""
    app = Flask(__name__)
    app.url_map.merge_slashes = False  # it would answer //generate with a redirect to whatever Host the caller wrote
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)
    monitor = ModelMonitor(client)
    threading.Thread(target=monitor.watch, args=(threading.Event(),), name="monitor", daemon=True).start()
    responses = ImageResponses(settings, client, monitor)
    description = build_openapi(open_to_all=None if settings.token is None else PROBES)
    description_json = app.json.dumps(description)
    app.add_template_filter(code_marked)
    answer_with_problems(app)

    @app.before_request
    def for_bearers() -> None:
        """Refuse whoever doesn't bear the token; a browser's preflight, which can't bear one, asks for nothing."""
        if request.path not in PROBES and request.method != "OPTIONS":
            require_token(settings.token, request.headers.get("Authorization"))

    @app.before_request
    def without_a_body() -> None:
        """Refuse a body before it is read: no resource takes one."""
        sent = request.content_length or request.headers.get("Transfer-Encoding")
        if sent and request.routing_exception is None:
            raise RequestEntityTooLarge("The request has a body; no resource here takes one.")

    for resource in RESOURCES:
        app.add_url_rule(resource.path, resource.path[1:], responses.respond, defaults={"resource": resource})

    @app.get("/")
    def gallery() -> Response:
        """Show the pictures to people; while no model is ready the page comes all the same, and waits for one."""
        version: int | None
        try:
            version = monitor.versions()[-1]
        except (ModelUnavailable, ModelTimeout, Overloaded):
            version = None
        page = render_gallery(settings.model_name, version)
        return revalidated(Response(page, mimetype="text/html"))

    @app.get("/about")
    def about() -> Response:
        """Tell which model is served, in which versions, what its newest is, and whether this replica is proved."""
        versions = monitor.versions()
        check = responses.golden_check(versions[-1])
        response = jsonify(
            model=settings.model_name,
            version=versions[-1],
            versions=versions,
            replica=check.verdict,
            size=check.size,
            renderer=RENDERER_VERSION,
            card=model_card(settings.model_base_path / str(versions[-1])),
        )
        return revalidated(response)

    @app.get("/openapi.json")
    def openapi() -> Response:
        """Describe all of this for programs."""
        return revalidated(Response(description_json, mimetype="application/json"))

    @app.get("/docs")
    def docs() -> Response:
        """Describe all of this for people."""
        return revalidated(Response(render_template("docs.html", api=description), mimetype="text/html"))

    @app.get("/livez")
    def livez() -> Response:
        """Answer 200 while the process is up, and ask nobody: a restart of the gateway mends no model server."""
        return Response("alive\n", mimetype="text/plain")

    @app.get("/readyz")
    def readyz() -> Response:
        """Answer 200 while the model server has a version of the model ready, as of a second ago, else a problem.

        The first time, and after an outage, its golden pictures are compared: a replica that paints others is ready
        all the same, but says so, here, in its log, its metrics and its ETags.
        """
        version = monitor.versions()[-1]
        monitor.require_model()
        check = monitor.latest_check(version) or monitor.golden_check(version, deadline_s=responses.deadline_s())
        return Response(f"ready: version {version}, {check.verdict}\n", mimetype="text/plain")

    @app.after_request
    def for_everyone(response: Response) -> Response:
        """Add what every response carries, and say what came of the request."""
        response.headers.extend(EVERYWHERE)
        if request.method == "OPTIONS":
            response.headers.extend(PREFLIGHT)
        if response.mimetype == "text/html":
            response.headers.update(PAGE_HEADERS)
        record = current_record()
        response.headers.add("X-Request-ID", record.request_id)
        record.resource = (request.endpoint or "unknown").removeprefix("/")
        record.status = response.status_code
        if record.path == "-":
            record.path = quote(request.path)
        if response.status_code < 400:
            record.outcome = NOT_MODIFIED if response.status_code == 304 else ANSWERED
        if request.method != "HEAD":
            record.size_bytes = response.content_length or 0
        return response

    app.wsgi_app = observing(app.wsgi_app)  # type: ignore[method-assign]
    return app


def observing(app: Any) -> Any:
    """Return the WSGI application that observes what `app` answers, until the answer is ready to be sent."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        sent = {name: environ[variable] for variable, name in OBSERVED_HEADERS.items() if variable in environ}
        probe = environ["PATH_INFO"] in PROBES
        environ.pop("HTTP_IF_MATCH", None)  # nothing here can be changed; Werkzeug would answer 412 to `*`, too
        with record_request(environ["REQUEST_METHOD"], sent, recorded=not probe) as record:
            record.quiet = probe
            answer: Iterable[bytes] = app(environ, start_response)
            return answer

    return answer


def revalidated(response: Response) -> Response:
    """Return `response` with an ETag of its content, as a 304 if the caller holds it already."""
    response.headers["Cache-Control"] = REVALIDATE
    response.add_etag()
    response.make_conditional(request)
    return response


def code_marked(text: str) -> Markup:
    """Return `text` for a page, with what stands between backticks as code: the one Markdown of our descriptions."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def model_card(folder: Path) -> str | None:
    """Return the card of the version in `folder`, None where this machine has none: it need not have the model."""
    try:
        return (folder / "model_card.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
