"""From the URL of an image to its response, 200 or 304."""

import hashlib
import math
import secrets
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import parse_qs, quote

from flask import Response, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import NotAcceptable
from werkzeug.http import dump_options_header, quote_etag

from serving.errors import InvalidRequest, UnknownVersion
from serving.gateway.openapi import ANY_BYTES, IN_PATH
from serving.model_client.client import VERIFIED, ModelClient
from serving.model_client.monitor import GoldenCheck, ModelMonitor
from serving.rendering.encoding import MIMETYPES, RENDERER_VERSION
from serving.rendering.query import NAME, Picture, Query, canonical_url, check_canvas, mimetypes, read_query
from serving.rendering.renderer import Renderer
from serving.runtime.limits import ConcurrencyLimit
from serving.settings import Settings
from serving.telemetry.metrics import PICTURES
from serving.telemetry.request_log import check_client, current_record

REVALIDATE = "no-cache"  # may be cached but must be revalidated: the newest version may change
IMMUTABLE = "public, max-age=31536000, immutable"  # a year, the longest that RFC 9111 suggests
# A sheet takes the model longer than one image: 64 sheets of 64 would wait 20 s on two cores, past their deadline.
IMAGES_PER_SLOT = 2


class ImageResponses:
    """Responds to the current request with an image of the model; thread-safe."""

    def __init__(self, settings: Settings, client: ModelClient, monitor: ModelMonitor) -> None:
        self._settings = settings
        self._monitor = monitor
        self._renderer = Renderer(
            client, settings.model_name, cache_bytes=settings.cache_mb * 2**20, model_calls=settings.model_calls
        )
        self._in_flight = ConcurrencyLimit(settings.max_in_flight, "requests")
        # Shared caches must not serve images without the token.
        self._immutable = IMMUTABLE if settings.token is None else IMMUTABLE.replace("public", "private")

    def respond(self, resource: type[Query], **in_path: str) -> Response:
        """Return the image of the URL, or 304; `in_path` has path parameters."""
        requested = read_query(resource, _arguments(in_path))
        query = requested if requested.format else replace(requested, format=_negotiated_format(resource))
        if isinstance(query, Picture) and query.seed is None:
            query = replace(query, seed=secrets.randbelow(2**53))  # JavaScript's numbers are exact below
        if query.version is not None:
            response = self._respond(query, query.version, self._immutable)
        else:
            try:
                response = self._respond(query, self._monitor.versions()[-1], REVALIDATE)
            except UnknownVersion:  # another version has replaced it since the last refresh
                response = self._respond(query, self._monitor.refresh()[-1], REVALIDATE)
        if isinstance(requested, Picture) and requested.seed is None:  # each response has another image
            response.headers["Cache-Control"] = "no-store"
        if requested.format is None:
            response.vary.add("Accept")
        return response

    def golden_check(self, version: int) -> GoldenCheck:
        """Return the latest check of `version`; without one, render the golden images."""
        if check := self._monitor.latest_check(version):
            return check
        with self._model_slot():
            return self._monitor.golden_check(version, deadline_s=self.deadline_s())

    def deadline_s(self) -> float:
        """Return the deadline of the current request, by time.monotonic."""
        return current_record().began_s + self._settings.predict_timeout_s

    def _respond(self, query: Query, version: int, cache_control: str) -> Response:
        """Return the image of `query`, with seed and format, or 304."""
        query, record = replace(query, version=version), current_record()
        record.path = url = canonical_url(query)
        if self._monitor.knows(version):
            record.model_version = version
        check = self.golden_check(version)
        record.model_version = version
        for fingerprint in dict.fromkeys((VERIFIED, check.fingerprint)):
            known = replace(check, fingerprint=fingerprint)
            named, etag = request.if_none_match, self._etag(url, known)
            if named.is_strong(etag) or named.is_weak(etag):  # contains_weak() is true for `*`, too
                return self._build_response(None, query, url, known, cache_control)
        if query.size is None:
            check_canvas(query, check.size)
        check, image = self._image(query, check)
        client_has_any = request.if_none_match.star_tag  # `*` names any image that exists, as this one does
        return self._build_response(None if client_has_any else image, query, url, check, cache_control)

    def _image(self, query: Query, check: GoldenCheck) -> tuple[GoldenCheck, bytes]:
        """Return the image of `query`, cached or rendered, and its golden check."""
        for fingerprint in dict.fromkeys((VERIFIED, check.fingerprint)):
            image = self._renderer.cached(query, fingerprint, check.model)
            if image is not None:
                _record_source("cache")
                return replace(check, fingerprint=fingerprint), image
        columns, rows = query.tiles
        with self._model_slot(images=columns * rows):
            _record_source("model")
            return self._monitor.with_check(
                check.version,
                lambda check: self._renderer.render(query, check, deadline_s=self.deadline_s()),
                deadline_s=self.deadline_s(),
            )

    @contextmanager
    def _model_slot(self, *, images: int = 1) -> Iterator[None]:
        """Hold slots for a call of the model with `images`, or raise."""
        self._monitor.require_model()
        connection = request.environ["gunicorn.socket"]
        record = current_record()
        record.is_abandoned = lambda: client_has_gone(connection)
        with self._in_flight.slot(record.is_abandoned, slots=math.ceil(images / IMAGES_PER_SLOT)):
            check_client()
            yield

    def _build_response(
        self, image: bytes | None, query: Query, url: str, check: GoldenCheck, cache_control: str
    ) -> Response:
        """Return the response with `image`, or 304 without one."""
        headers = {
            "ETag": quote_etag(self._etag(url, check)),
            # Only verified bytes may be cached for a year: all verified replicas have the same.
            "Cache-Control": cache_control if check.fingerprint == VERIFIED else REVALIDATE,
            "Content-Location": request.script_root + url,
            "Ringo-Model-Version": str(query.version),
        }
        subject = query.path.removeprefix("/")
        if isinstance(query, Picture):
            headers["Ringo-Seed"] = subject = str(query.seed)
        if image is not None:  # a browser saves it as apple-42.png or apple-grid.png
            file_name = f"{self._settings.model_name}-{subject}.{query.format}"
            headers["Content-Disposition"] = content_disposition(file_name)
        return Response(image, 304 if image is None else 200, headers, mimetype=MIMETYPES[str(query.format)])

    def _etag(self, url: str, check: GoldenCheck) -> str:
        """Return the ETag: fingerprint, and digest of model, URL and encoders."""
        named = "\n".join((self._settings.model_name, url, str(RENDERER_VERSION), check.model))
        return f"{check.fingerprint}-{hashlib.sha256(named.encode()).hexdigest()[:32]}"


def content_disposition(file_name: str) -> str:
    """Return the header with `file_name` (RFC 6266), also in UTF-8 (RFC 8187)."""
    in_ascii = file_name.encode("ascii", "replace").decode().replace("?", "_")
    names = {"filename": in_ascii}
    if in_ascii != file_name:
        names["filename*"] = "UTF-8''" + quote(file_name, safe="")
    return dump_options_header("inline", names)


def _arguments(in_path: dict[str, str]) -> MultiDict[str, str]:
    """Return the parameters of the current URL; or raise InvalidRequest."""
    arguments = MultiDict(request.args)
    if in_path:
        for name in IN_PATH & arguments.keys():
            raise InvalidRequest(name, arguments[name], "none", "is not allowed in a short URL; leave it out")
        if not in_path.get("seed", "0").isdecimal():  # it may be a person's name
            current_record().path = f"/-.{in_path['format']}"
        arguments.update(in_path | {"format": in_path["format"].replace("jpg", "jpeg")})
    if "name" in arguments:
        sent = parse_qs(request.query_string.decode("latin-1"), encoding="latin-1").get("name", [])
        try:
            " ".join((request.environ["PATH_INFO"], *sent)).encode("latin-1").decode()
        except UnicodeDecodeError:
            raise InvalidRequest("name", arguments["name"], NAME.allowed, "is not UTF-8; encode it") from None
    return arguments


def client_has_gone(connection: socket.socket) -> bool:
    """Return whether the client has closed `connection`."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)  # POLLIN would report unread bytes of TLS, too
    return bool(poll.poll(0))


def _record_source(source: str) -> None:
    current_record().source = source
    PICTURES.labels(source).inc()


def _negotiated_format(resource: type[Query]) -> str:
    """Return the format that `Accept` prefers, or raise NotAcceptable."""
    offered = mimetypes(resource)
    accepted = request.accept_mimetypes
    # Only by its name: `*/*` would match it beside `image/*;q=0`, too.
    others = [ANY_BYTES] if ANY_BYTES in map(str.lower, accepted.values()) else []
    liked = accepted.best_match([*offered, *others]) if accepted else offered[0]
    if liked is None:
        raise NotAcceptable(f"Accept admits none of {', '.join(offered)}; set format.")
    return resource.formats[0 if liked == ANY_BYTES else offered.index(liked)]
