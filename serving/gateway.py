"""The HTTP edge: a query in the URL, a picture in the answer, problems as RFC 9457 has them.

One model version, one seed, one set of options is one SHA-256, so a picture's ETag is known before the picture is made.
"""

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, jsonify, render_template, request
from markupsafe import Markup, escape
from werkzeug.exceptions import HTTPException, NotAcceptable, RequestEntityTooLarge
from werkzeug.http import dump_options_header, quote_etag

from serving.errors import (
    CallerGone,
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
from serving.gallery import render_gallery
from serving.gate import Gate
from serving.metrics import PICTURES
from serving.model_client import PROVED, ModelClient
from serving.observation import ANSWERED, NOT_MODIFIED, Observation, current, observe
from serving.openapi import build_openapi
from serving.painter import Painter
from serving.pictures import MIMETYPES, RENDERER_VERSION
from serving.queries import MAX_SEED, RESOURCES, Picture, Query, address, check_canvas, mimetypes, read_query
from serving.replica import Replica
from serving.security import require_token
from serving.settings import Settings

REVALIDATE = "no-cache"  # keep it, but ask: the newest version may be another by then
IMMUTABLE = "public, max-age=31536000, immutable"  # a year, which RFC 9111 takes for ever
IMMUTABLE_FOR_BEARERS = IMMUTABLE.replace("public", "private")  # no shared cache hands it to who has no token
NOT_KEPT = "no-store"
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


@dataclass(frozen=True)
class Answer:
    """How a domain error looks in HTTP."""

    status: int
    kind: str
    title: str
    retry_after_s: int | None = None


# A model server that is back is noticed within a second (see model_client.CHANNEL_OPTIONS): no use in waiting longer.
# Overloaded is 503 and not 429: the whole service is at its limit, this caller need not have asked too often.
ANSWERS: dict[type[RingoError], Answer] = {
    InvalidRequest: Answer(400, "invalid-request", "The request is not valid"),
    NotAuthenticated: Answer(401, "not-authenticated", "The caller doesn't bear the token"),
    UnknownVersion: Answer(404, "unknown-version", "The model server has no such version of the model"),
    ModelMismatch: Answer(502, "model-mismatch", "The model server answered something else than pictures"),
    ModelUnavailable: Answer(503, "model-unavailable", "No model is ready", retry_after_s=1),
    Stopping: Answer(503, "stopping", "The server is about to end", retry_after_s=1),
    CallerGone: Answer(499, "caller-gone", "Nobody waits for the answer"),  # nginx's number; only metrics see it
    Overloaded: Answer(503, "overloaded", "The service takes no more work for now", retry_after_s=1),
    ModelTimeout: Answer(504, "model-timeout", "The model server took too long"),
}


def create_app(settings: Settings) -> Flask:
    """Return the gateway with a channel and a thread of its own: call it in the process that answers, after a fork."""
    app = Flask(__name__)
    app.url_map.merge_slashes = False  # it would answer //generate with a redirect to whatever Host the caller wrote
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)
    replica = Replica(client)
    threading.Thread(target=replica.watch, args=(threading.Event(),), name="look", daemon=True).start()
    in_flight = Gate(settings.max_in_flight, "requests")
    painter = Painter(
        client, settings.model_name, cache_bytes=settings.cache_mb * 2**20, model_calls=settings.model_calls
    )
    description = build_openapi(open_to_all=None if settings.token is None else PROBES)
    description_json = app.json.dumps(description)
    immutable = IMMUTABLE if settings.token is None else IMMUTABLE_FOR_BEARERS
    app.add_template_filter(code_marked)

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

    def picture(resource: type[Query]) -> Response:
        """Answer with the picture that the URL asks `resource` for, or 304 if the caller holds it already."""
        asked = read_query(resource, request.args)
        query = asked if asked.format else replace(asked, format=negotiated_format(resource))
        if isinstance(query, Picture) and query.seed is None:
            query = replace(query, seed=secrets.randbelow(MAX_SEED + 1))
        if query.version is not None:
            response = pinned(query, query.version, immutable)
        else:
            try:
                response = pinned(query, replica.versions()[-1], REVALIDATE)
            except UnknownVersion:  # another took its place since we last looked
                response = pinned(query, replica.look()[-1], REVALIDATE)
        if isinstance(asked, Picture) and asked.seed is None:  # each answer is another
            response.headers["Cache-Control"] = NOT_KEPT
        if asked.format is None:
            response.vary.add("Accept")
        return response

    def pinned(query: Query, version: int, cache_control: str) -> Response:
        """Answer a query, whose seed and format are decided, with what `version` paints.

        Who holds the proved picture holds the picture, whatever this replica would paint: that needs no model server.
        """
        query, seen = replace(query, version=version), observed()
        seen.path = url = address(query)
        if replica.knows(version):
            seen.model_version = version
        if holds(url, PROVED):
            return finished(None, query, url, PROVED, cache_control)
        proof = replica.known_proof(version)
        if proof is None:
            with asking_the_model():
                proof = replica.proof(version, deadline_s=deadline_s())
        seen.model_version = version
        if proof.differing:  # for a year nobody should keep what this replica alone paints so
            cache_control = REVALIDATE
        if proof.mark != PROVED and holds(url, proof.mark):  # PROVED was asked for above
            return finished(None, query, url, proof.mark, cache_control)
        if query.size is None:
            check_canvas(query, proof.size)
        made = painter.kept(query, proof.mark)
        if made is not None:
            came_from("cache")
        else:
            with asking_the_model():
                came_from("model")
                made = painter.answer(query, proof.mark, deadline_s=deadline_s())
        return finished(made, query, url, proof.mark, cache_control)

    def holds(url: str, mark: str) -> bool:
        """Return whether the caller says that he holds the picture."""
        return "If-None-Match" in request.headers and request.if_none_match.contains_weak(etag(url, mark))

    def came_from(source: str) -> None:
        observed().source = source
        PICTURES.labels(source).inc()

    @contextmanager
    def asking_the_model() -> Iterator[None]:
        """Be one of those who wait for the model; raise instead of waiting for nothing, or for nobody."""
        replica.require_model()
        with in_flight.passed():
            caller = request.environ.get("gunicorn.socket")
            if caller is not None and caller.has_gone():
                raise CallerGone("The caller has gone before the model was asked.")
            yield

    def deadline_s() -> float:
        """Return when the caller's time is up, by time.monotonic: what he waited for a thread counts."""
        arrived_s: float = request.environ.get("ringo.arrived_s", time.monotonic())
        return arrived_s + settings.predict_timeout_s

    def finished(made: bytes | None, query: Query, url: str, mark: str, cache_control: str) -> Response:
        """Return the answer with the picture `made`, or 304 to who holds it."""
        headers = {
            "ETag": quote_etag(etag(url, mark)),
            "Cache-Control": cache_control,
            "Content-Location": url,
            "Ringo-Model-Version": str(query.version),
        }
        if isinstance(query, Picture):
            headers["Ringo-Seed"] = str(query.seed)
        if made is not None:
            headers["Content-Disposition"] = dump_options_header("inline", {"filename": file_name(query)})
        return Response(made, 304 if made is None else 200, headers, mimetype=MIMETYPES[str(query.format)])

    def etag(url: str, mark: str) -> str:
        """Return the tag of the picture at a pinned `url`: its class, and a digest of all that its bytes depend on."""
        named = "\n".join((settings.model_name, url, str(RENDERER_VERSION)))
        return f"{mark}-{hashlib.sha256(named.encode()).hexdigest()[:32]}"

    def file_name(query: Query) -> str:
        """Return what a browser calls the picture when it saves it: apple-42.png."""
        which = query.seed if isinstance(query, Picture) else query.path.removeprefix("/")
        return f"{settings.model_name}-{which}.{query.format}"

    for resource in RESOURCES:
        app.add_url_rule(resource.path, resource.path[1:], picture, defaults={"resource": resource})

    @app.get("/")
    def gallery() -> Response:
        """Show the pictures to people; while no model is ready the page comes all the same, and waits for one."""
        version: int | None
        try:
            version = replica.versions()[-1]
        except (ModelUnavailable, ModelTimeout, Overloaded):
            version = None
        page = render_gallery(settings.model_name, version)
        return revalidated(Response(page, mimetype="text/html"))

    @app.get("/about")
    def about() -> Response:
        """Tell which model is served, in which versions, what its newest is, and whether this replica is proved."""
        versions = replica.versions()
        proof = replica.known_proof(versions[-1])
        if proof is None:
            with asking_the_model():
                proof = replica.proof(versions[-1], deadline_s=deadline_s())
        response = jsonify(
            model=settings.model_name,
            version=versions[-1],
            versions=versions,
            replica=proof.verdict,
            size=proof.size,
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
        version = replica.versions()[-1]
        replica.require_model()
        verdict = replica.proof(version, deadline_s=deadline_s()).verdict
        return Response(f"ready: version {version}, {verdict}\n", mimetype="text/plain")

    @app.after_request
    def for_everyone(response: Response) -> Response:
        """Add what every response carries, and say what came of the request."""
        response.headers.extend(EVERYWHERE)
        if request.method == "OPTIONS":
            response.headers.extend(PREFLIGHT)
        if response.mimetype == "text/html":
            response.headers.update(PAGE_HEADERS)
        seen = observed()
        response.headers.add("X-Request-ID", seen.request_id)
        seen.resource = (request.endpoint or "unknown").removeprefix("/")
        seen.status = response.status_code
        if seen.path == "-":
            seen.path = quote(request.path)
        if response.status_code < 400:
            seen.outcome = NOT_MODIFIED if response.status_code == 304 else ANSWERED
        if request.method != "HEAD":
            seen.size_bytes = response.content_length or 0
        return response

    @app.errorhandler(RingoError)
    def domain_problem(error: RingoError) -> Response:
        answer = ANSWERS[type(error)]
        more = {}
        if isinstance(error, InvalidRequest):
            more = {"parameter": error.field, "value": error.value, "allowed": error.allowed}
        observed().failed_by(error, answer.kind.replace("-", "_"))
        kind = f"urn:ringo:problem:{answer.kind}"
        response = problem(answer.status, kind=kind, title=answer.title, detail=str(error), more=more)
        if isinstance(error, NotAuthenticated):
            response.headers["WWW-Authenticate"] = "Bearer"
        if answer.retry_after_s is not None:
            response.headers["Retry-After"] = str(answer.retry_after_s)
        return response

    @app.errorhandler(HTTPException)
    def http_problem(error: HTTPException) -> Response:
        """Answer as werkzeug would, with its headers (405 has Allow), but with a problem for a body.

        Whatever else is raised arrives here as a 500 that tells nothing; its traceback is in the log.
        """
        if error.code is not None and error.code < 500:
            observed().outcome = error.name.lower().replace(" ", "_")  # not_found
        response = problem(error.code or 500, kind="about:blank", title=error.name, detail=error.description or "")
        response.headers.extend((name, text) for name, text in error.get_headers() if name != "Content-Type")
        return response

    app.wsgi_app = observing(app.wsgi_app)  # type: ignore[method-assign]
    return app


def observing(app: Any) -> Any:
    """Return the WSGI application that observes what `app` answers, until the answer is ready to be sent."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        sent = {name: environ[variable] for variable, name in OBSERVED_HEADERS.items() if variable in environ}
        probe = environ["PATH_INFO"] in PROBES
        arrived_s = environ.get("ringo.arrived_s")
        with observe(environ["REQUEST_METHOD"], sent, arrived_s=arrived_s, recorded=not probe) as seen:
            seen.quiet = probe
            answer: Iterable[bytes] = app(environ, start_response)
            return answer

    return answer


def observed() -> Observation:
    """Return the observation of the current request."""
    seen = current()
    if seen is None:
        raise LookupError("Requests come through observing().")
    return seen


def negotiated_format(resource: type[Query]) -> str:
    """Return the format of `resource` that `Accept` likes best; raise NotAcceptable if it likes none."""
    offered = mimetypes(resource)
    liked = request.accept_mimetypes.best_match(offered) if request.accept_mimetypes else offered[0]
    if liked is None:
        raise NotAcceptable(f"{resource.path} has {', '.join(offered)}.")
    return resource.formats[offered.index(liked)]


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


def problem(status: int, *, kind: str, title: str, detail: str, more: Mapping[str, str] | None = None) -> Response:
    """Return the application/problem+json of RFC 9457 for the current request, with the members of `more`."""
    members = {
        "type": kind,
        "title": title,
        "status": status,
        "detail": detail,
        "instance": quote(request.path),
        "request_id": observed().request_id,
        **(more or {}),
    }
    response = Response(json.dumps(members), status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    return response
