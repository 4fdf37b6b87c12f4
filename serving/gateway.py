"""The HTTP edge: a seed in the query, a picture in the answer, problems as RFC 9457 has them."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from flask import Flask, Response, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from serving.errors import InvalidRequest, ModelMismatch, ModelTimeout, ModelUnavailable, Overloaded, RingoError
from serving.model_client import ModelClient
from serving.pictures import encode_png
from serving.settings import Settings

MAX_SEED = 2**63 - 1  # the model takes int64

# One spelling per seed, so that one picture has one URL.
SEED = re.compile("0|[1-9][0-9]{0,18}")
ALLOWED_SEED = f"one whole number from 0 to {MAX_SEED}, in decimal digits without sign, space or leading zero"


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
    ModelMismatch: Answer(502, "model-mismatch", "The model server answered something else than pictures"),
    ModelUnavailable: Answer(503, "model-unavailable", "No model is ready", retry_after_s=1),
    Overloaded: Answer(503, "overloaded", "The model server takes no more work for now", retry_after_s=1),
    ModelTimeout: Answer(504, "model-timeout", "The model server took too long"),
}


def create_app(settings: Settings) -> Flask:
    """Return the gateway with a channel of its own: call it in the process that answers, not before a fork."""
    app = Flask(__name__, static_folder=None)
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)

    @app.get("/generate")
    def generate() -> Response:
        asked = asked_seed(request.args)
        seed = secrets.randbelow(MAX_SEED + 1) if asked is None else asked
        generated = client.generate([seed])
        response = Response(encode_png(generated.images[0]), mimetype="image/png")
        response.headers["Ringo-Seed"] = str(seed)
        response.headers["Ringo-Model-Version"] = str(generated.model_version)
        response.headers["Content-Location"] = url_for("generate", seed=seed)
        # A seed's picture changes with the model's version: keep it, but ask. Without a seed each answer is another.
        response.headers["Cache-Control"] = "no-store" if asked is None else "no-cache"
        return response

    @app.get("/livez")
    def livez() -> Response:
        """Answer 200 while the process is up, and ask nobody: a restart of the gateway mends no model server."""
        return Response("alive\n", mimetype="text/plain")

    @app.get("/readyz")
    def readyz() -> Response:
        """Answer 200 while the model server has a version of the model ready, else the problem ModelUnavailable."""
        return Response(f"ready: version {client.available_version()}\n", mimetype="text/plain")

    @app.errorhandler(RingoError)
    def domain_problem(error: RingoError) -> Response:
        answer = ANSWERS[type(error)]
        more = {}
        if isinstance(error, InvalidRequest):
            more = {"parameter": error.field, "value": error.value, "allowed": error.allowed}
        kind = f"urn:ringo:problem:{answer.kind}"
        response = problem(answer.status, kind=kind, title=answer.title, detail=str(error), more=more)
        if answer.retry_after_s is not None:
            response.headers["Retry-After"] = str(answer.retry_after_s)
        return response

    @app.errorhandler(HTTPException)
    def http_problem(error: HTTPException) -> Response:
        """Answer as werkzeug would, with its headers (405 has Allow), but with a problem for a body.

        Whatever else is raised arrives here as a 500 that tells nothing; its traceback is in the log.
        """
        response = problem(error.code or 500, kind="about:blank", title=error.name, detail=error.description or "")
        response.headers.extend((name, text) for name, text in error.get_headers() if name != "Content-Type")
        return response

    return app


def asked_seed(query: MultiDict[str, str]) -> int | None:
    """Return the seed that `query` asks for, None if it leaves the choice to us; raise InvalidRequest."""
    for name in query:
        if name != "seed":
            raise InvalidRequest(name, query[name], "no parameter but seed")
    values = query.getlist("seed")
    if not values:
        return None
    if len(values) > 1 or not SEED.fullmatch(values[0]) or int(values[0]) > MAX_SEED:
        raise InvalidRequest("seed", ", ".join(values), ALLOWED_SEED)
    return int(values[0])


def problem(status: int, *, kind: str, title: str, detail: str, more: Mapping[str, str] | None = None) -> Response:
    """Return the application/problem+json of RFC 9457 for the current request, with the members of `more`."""
    members = {
        "type": kind,
        "title": title,
        "status": status,
        "detail": detail,
        "instance": quote(request.path),
        **(more or {}),
    }
    response = Response(json.dumps(members), status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    return response
