"""Pages for people and programs, and the probes."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, render_template, request
from markupsafe import Markup, escape

from serving.errors import ModelTimeout, ModelUnavailable, Overloaded
from serving.gateway.openapi import build_openapi
from serving.gateway.responses import REVALIDATE, ImageResponses
from serving.model_client.monitor import GoldenCheck, ModelMonitor
from serving.rendering.encoding import RENDERER_VERSION
from serving.rendering.query import EXAMPLE_SEEDS, MAX_SEED, Animation, Morph, Picture, Query, canonical_url
from serving.rendering.renderer import LICENCES
from serving.settings import Settings


def add_pages(app: Flask, settings: Settings, monitor: ModelMonitor, responses: ImageResponses) -> None:
    """Add the gallery, /about and the icon to `app`."""

    @app.get("/")
    def gallery() -> Response:
        version = check = card = None
        with suppress(ModelUnavailable, ModelTimeout, Overloaded):  # the page waits for a model itself
            version = monitor.versions()[-1]
            card = model_card(settings.model_base_path / str(version))
            check = monitor.latest_check(version)
        page = render_template(
            "gallery.html",
            model=settings.model_name,
            licence=licence_of(check, card),
            version=version,
            max_seed=MAX_SEED,
            example_seeds=EXAMPLE_SEEDS,
            part=60,  # images: whole rows for every number of columns in gallery.css
            image_url=partial(pinned_url, Picture, version=version),
            strip_url=partial(pinned_url, Morph, version=version),
            animation_url=partial(pinned_url, Animation, version=version),
        )
        return revalidated(Response(page))

    @app.get("/about")
    def about() -> Response:
        versions = monitor.versions()
        check = responses.golden_check(versions[-1])
        card = model_card(settings.model_base_path / str(versions[-1]))
        response = jsonify(
            model=settings.model_name,
            version=versions[-1],
            versions=versions,
            replica=check.verdict,
            size=check.size,
            renderer=RENDERER_VERSION,
            licence=licence_of(check, card),
            card=card,
        )
        return revalidated(response)

    app.add_url_rule("/favicon.ico", "favicon", partial(app.send_static_file, "favicon.png"))


def add_api_description(app: Flask, settings: Settings) -> None:
    """Add /openapi.json and /docs to `app`."""
    description = build_openapi(settings.path_prefix, needs_token=settings.token is not None)
    description_json = app.json.dumps(description)
    app.add_template_filter(code_marked)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return revalidated(Response(description_json, mimetype="application/json"))

    @app.get("/docs")
    def docs() -> Response:
        return revalidated(Response(render_template("docs.html", api=description, example_seed=EXAMPLE_SEEDS[0])))


def add_probes(app: Flask, monitor: ModelMonitor, responses: ImageResponses) -> None:
    """Add /livez and /readyz to `app`."""

    @app.get("/livez")
    def livez() -> Response:
        """Answer 200: a restart does not repair a missing model server."""
        return Response("alive\n", mimetype="text/plain")

    @app.get("/readyz")
    def readyz() -> Response:
        """Answer 200 if a version was ready a second ago."""
        version = monitor.versions()[-1]
        monitor.require_model()
        check = monitor.latest_check(version) or monitor.golden_check(version, deadline_s=responses.deadline_s())
        return Response(f"ready: version {version}, {check.verdict}\n", mimetype="text/plain")


def pinned_url(resource: Callable[..., Query], *seeds: int, **options: Any) -> str:
    """Return the URL of an image of `resource` for the current page."""
    return request.script_root + canonical_url(resource(*seeds, **options))


def revalidated(response: Response) -> Response:
    """Return `response` with an ETag of its content, or 304."""
    response.headers["Cache-Control"] = REVALIDATE
    response.add_etag()
    response.make_conditional(request)
    return response


def code_marked(text: str) -> Markup:
    """Return `text` as HTML, with text in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def licence_of(check: GoldenCheck | None, card: str | None) -> str | None:
    """Return licence and attribution, from LICENCES or the model card."""
    # Not the front matter's `license`, which is quoted as in YAML.
    stated = re.findall("^- (Licence of these weights|Attribution): (.+)$", card or "", re.MULTILINE)
    return (check and LICENCES.get(check.model)) or "; ".join(text for _, text in sorted(stated, reverse=True)) or None


def model_card(folder: Path) -> str | None:
    """Return the model card in `folder`, if any."""
    card = folder / "model_card.md"
    with suppress(OSError, UnicodeDecodeError):
        return card.read_text(encoding="utf-8") if card.is_file() else None  # reading a FIFO would not end
    return None
