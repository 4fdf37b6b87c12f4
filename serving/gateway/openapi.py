"""The OpenAPI 3.1 description of the gateway, made from what reads and checks its queries."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any

from serving.rendering.query import RESOURCES, Query, mimetypes, parameters

INTRODUCTION = """\
One seed, one picture, for ever: one model version, one seed and one set of options is one SHA-256, on every call, in \
every batch, after a restart, on every replica of one kind.

Without `version` the newest one answers, and its picture may be kept but has to be asked for again; with `version` it \
is immutable. `Content-Location` is the address that pins all that was left open. `ETag` is known without the model: \
`If-None-Match` gets 304 even while the model server is down. Its class, the word before the dash, is `proved` where \
the replica paints the golden pictures exactly as the machine that exported the model did, else a name for what it \
paints instead: equal classes, equal bytes.

A parameter that is unknown, missing, repeated or out of range is a 400 that names it; nothing is clamped.

Every response has an `X-Request-ID`: the caller's, if it sent one of up to 64 letters, digits and `._-`, else a new \
one. A `traceparent` goes on to the model server."""

REFUSALS = {
    "400": "A parameter is refused; `parameter`, `value` and `allowed` say which and why.",
    "404": "The model server has no such version loaded.",
    "406": "`Accept` admits none of the formats.",
    "502": "The model server answered something that is not this model's contract.",
    "503": "No model is ready, or the service takes no more work; `Retry-After` says when to come back.",
    "504": "The model server took too long.",
}
EVERYWHERE = {
    "413": "The request has a body; none takes one.",
    "414": "The URL is longer than 4 kB.",
}
UNAUTHENTICATED = {"401": "The bearer token is missing, or not this service's."}
ASKING = {status: REFUSALS[status] for status in ("404", "502", "503", "504")}

PROBLEM = {
    "type": "object",
    "description": "RFC 9457. A refused parameter is named by `parameter`, `value` and `allowed`.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "parameter": {"type": "string"},
        "value": {"type": ["string", "null"], "description": "Null where the parameter is missing."},
        "allowed": {"type": "string"},
        "request_id": {"type": "string", "description": "By which the operator finds it."},
    },
}

ABOUT = {
    "type": "object",
    "required": ["model", "version", "versions", "replica", "size", "renderer", "card"],
    "properties": {
        "model": {"type": "string", "description": "The model's name."},
        "version": {"type": "integer", "description": "The newest version: it answers where none is asked for."},
        "versions": {"type": "array", "items": {"type": "integer"}, "description": "Those that `version` may name."},
        "replica": {
            "enum": ["proved", "unproved", "differs"],
            "description": "Whether this replica paints the golden pictures as the machine of the export did; unproved "
            "is a model that was exported without their digests.",
        },
        "size": {"type": "integer", "description": "Pixels of the longer side of the model's own pictures."},
        "renderer": {"type": "integer", "description": "Names the bytes that equal pixels become."},
        "card": {"type": ["string", "null"], "description": "The model card, Markdown; null where it is not at hand."},
    },
}

IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of a picture that the caller holds: 304 if it is still the one.",
    "schema": {"type": "string"},
}


NOT_MODIFIED = {"304": {"description": "The caller holds it already."}}

HEADERS = {
    "ETag": "The picture's name: class and digest.",
    "Cache-Control": "Whether it has to be asked for again.",
    "Content-Location": "The address that pins all that was left open.",
    "Content-Disposition": "A name for its file.",
    "Ringo-Model-Version": "The version that painted it.",
    "Ringo-Seed": "The seed, where there is one.",
}


def build_openapi(*, open_to_all: Collection[str] | None = None) -> dict[str, Any]:
    """Return the description as one JSON document; all paths but `open_to_all`, where that is given, want a token."""
    text = {"type": "string"}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Ringo", "version": "1", "description": INTRODUCTION, "license": {"name": "Apache-2.0"}},
        "paths": {
            **{resource.path: {"get": _picture(resource)} for resource in RESOURCES},
            "/about": _kept("about", "Which model is served, in which versions.", "application/json", ABOUT, ASKING),
            "/openapi.json": _kept(
                "openapi", "This description, for programs.", "application/json", {"type": "object"}
            ),
            "/docs": _kept("docs", "This description, for people.", "text/html", text),
            "/livez": _operation("livez", "Whether the gateway is up.", "text/plain", text),
            "/readyz": _operation(
                "readyz", "Whether the model server has a version ready.", "text/plain", text, ASKING
            ),
        },
        "components": {"schemas": {"Problem": PROBLEM}},
    }
    for operations in described["paths"].values():
        operations["get"]["responses"] |= _refusals(EVERYWHERE)
    if open_to_all is not None:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in described["paths"].items():
            if path not in open_to_all:
                operations["get"] |= {"security": [{"token": []}]}
                operations["get"]["responses"] |= _refusals(UNAUTHENTICATED)
    return described


def _picture(resource: type[Query]) -> dict[str, Any]:
    """Return the operation that answers with a picture of `resource`."""
    described = []
    for one, parameter in parameters(resource):
        schema = dict(parameter.schema)
        if one.default not in (MISSING, None):
            schema["default"] = one.default if schema["type"] == "integer" else parameter.write(one.default)
        described.append(
            {
                "name": one.name,
                "in": "query",
                "required": one.default is MISSING,
                "description": parameter.description,
                "schema": schema,
            }
        )
    return {
        "operationId": resource.path.removeprefix("/"),
        "summary": resource.__doc__,
        "parameters": [*described, IF_NONE_MATCH],
        "responses": {
            "200": {
                "description": "The picture.",
                "headers": {
                    name: {"description": said, "schema": {"type": "string"}} for name, said in HEADERS.items()
                },
                "content": {mimetype: {} for mimetype in mimetypes(resource)},  # binary: OpenAPI 3.1 says no more
            },
            **NOT_MODIFIED,
            **_refusals(REFUSALS),
        },
    }


def _operation(
    name: str, summary: str, mimetype: str, schema: dict[str, Any], refusals: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    answer = {"200": _content("The answer.", mimetype, schema), **_refusals(refusals)}
    return {"get": {"operationId": name, "summary": summary, "responses": answer}}


def _kept(
    name: str, summary: str, mimetype: str, schema: dict[str, Any], refusals: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return an operation whose answer may be kept, and asked for again."""
    described = _operation(name, summary, mimetype, schema, refusals)
    described["get"] |= {"parameters": [IF_NONE_MATCH]}
    described["get"]["responses"] |= NOT_MODIFIED
    return described


def _content(description: str, mimetype: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {mimetype: {"schema": schema}}}


def _refusals(statuses: Mapping[str, str]) -> dict[str, Any]:
    problem = {"$ref": "#/components/schemas/Problem"}
    return {status: _content(said, "application/problem+json", problem) for status, said in statuses.items()}
