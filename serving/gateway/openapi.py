"""The OpenAPI 3.1 description of the gateway, built from its queries."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from serving.rendering.encoding import RENDERER_VERSION
from serving.rendering.query import EXAMPLE_SEEDS, RESOURCES, SEEDS, STILL, Picture, Query, mimetypes, parameters
from serving.rendering.renderer import BUNDLED_MODEL, LICENCES

# Short paths of the image of one seed: with seed or name, and format.
SHORT_URLS = {
    "/{seed}.{format}": "The image of one seed.",
    "/name/{name}.{format}": "The image of one name.",
    "/random.{format}": "The image of a random seed.",
}
IN_PATH = {"seed", "name", "format"}  # parameters that a short URL never has in its query
EXTENSIONS = (*STILL, "jpg")
PROBES = ("/livez", "/readyz")  # need no token

INTRODUCTION = """\
Each seed gives one image. One model version, one seed and one set of options give one SHA-256: alone or in a batch, \
after a restart, and on every verified replica.

A parameter that is unknown, missing, repeated or out of range gives 400, and the response names it. Values are never \
clamped.

With `version`, responses of a verified replica are immutable: caches may keep them for a year. Without `version`, the \
newest version answers, and the response must be revalidated. `Content-Location` is the permanent URL. It states \
the format, the version and, for one image, the seed; other defaults are left out.

The `ETag` is computed without running the model. `If-None-Match` gets 304 even while the model server is down. The \
prefix of the ETag is `proved` on a verified replica: its golden images, of 64 fixed seeds, have the same bytes as \
on the machine that exported the model. On other replicas, it is a numeric fingerprint: a digest of their golden \
images. Equal ETags mean equal bytes.

Every response has an `X-Request-ID`, except errors in HTML: a malformed head, 414, 417, 431 and 501. A request may \
bring its own: 1 to 64 letters, digits and `._-`. A `traceparent` is passed on to the model server."""

REFUSALS = {
    "400": "A parameter is invalid; `parameter`, `value` and `allowed` describe it.",
    "401": "The bearer token is missing or wrong.",
    "404": "The model server has not loaded this version.",
    "406": "`Accept` admits none of the formats.",
    "413": "The request has a body; requests must have none.",
    "414": "The URL is longer than 4 kB. The response is HTML.",
    "502": "The model server returned data that does not fit the model.",
    "503": "No model is ready, or the service is at its limit. Retry after the seconds in `Retry-After`.",
    "504": "The deadline passed before the model server answered.",
}
OF_MODEL = ("404", "502", "503", "504")

PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `parameter`, `value` and `allowed` describe an invalid parameter.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": ["urn:ringo:problem:invalid-request"]},
        "title": {"type": "string", "examples": ["The request is not valid"]},
        "status": {"type": "integer", "examples": [400]},
        "detail": {"type": "string", "examples": ["seeds='5-2' runs backwards at 5-2; write 2-5."]},
        "instance": {"type": "string", "examples": ["/grid"]},
        "parameter": {"type": "string", "examples": ["seeds"]},
        "value": {"type": ["string", "null"], "description": "Null if it is missing.", "examples": ["5-2"]},
        "allowed": {"type": "string", "examples": [SEEDS.allowed]},
        "request_id": {"type": "string", "description": "The id in the log.", "examples": ["75ac010994c38bc8"]},
    },
}

ABOUT = {
    "type": "object",
    "required": ["model", "version", "versions", "replica", "size", "renderer", "licence", "card"],
    "properties": {
        "model": {"type": "string", "description": "The model's name.", "examples": ["apple"]},
        "version": {"type": "integer", "description": "The newest version, the default.", "examples": [3]},
        "versions": {
            "type": "array",
            "items": {"type": "integer", "examples": [3]},
            "description": "All loaded versions, oldest first.",
        },
        "replica": {
            "type": "string",
            "enum": ["proved", "unproved", "differs"],
            "description": "`proved`: verified, all golden images have the exporter's bytes. `differs`: some have "
            "other bytes. `unproved`: the version has no golden digests.",
        },
        "size": {"type": "integer", "description": "Pixels of the longer side of an image.", "examples": [128]},
        "renderer": {
            "type": "integer",
            "examples": [RENDERER_VERSION],
            "description": "Version of the encoder's settings: equal pixels and equal numbers give equal bytes.",
        },
        "licence": {
            "type": ["string", "null"],
            "examples": [LICENCES[BUNDLED_MODEL]],
            "description": "Licence of the images, with attribution; null if the gateway does not know it.",
        },
        "card": {
            "type": ["string", "null"],
            "examples": ["# apple, version 5"],
            "description": "The model card, in Markdown; null if the gateway cannot read it.",
        },
    },
}

# Of every parameter.
EXAMPLES: dict[str, int | str] = {
    "seed": EXAMPLE_SEEDS[0],
    "name": "alice@example.com",
    "size": 256,
    "version": 4,
    "seeds": "7,42,100-115",
    "columns": 6,
    "start": EXAMPLE_SEEDS[0],
    "end": EXAMPLE_SEEDS[1],
    "frames": 8,
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
ANY_BYTES = "application/octet-stream"  # client generators return bytes for this type only

ETAG = '"proved-06e9699d836f78b32509074e00a68e38"'
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of a cached response: 304 if it is still valid.",
    "schema": {"type": "string"},
    "example": ETAG,
}

# Description and example.
HEADERS = {
    "ETag": ("Prefix and digest; equal ETags mean equal bytes.", ETAG),
    "Cache-Control": ("Whether the response is immutable, must be revalidated, or must not be stored.", "no-cache"),
    "Content-Location": ("The permanent URL of the image.", f"/generate?seed={EXAMPLE_SEEDS[0]}&format=png&version=5"),
    "Content-Disposition": ("A file name for the image.", f"inline; filename=apple-{EXAMPLE_SEEDS[0]}.png"),
    "Ringo-Model-Version": ("The model version.", "5"),
    "Ringo-Seed": ("The seed, if the image has one.", str(EXAMPLE_SEEDS[0])),
}
# The same, of refusals.
REFUSAL_HEADERS = {
    "401": {"WWW-Authenticate": ("The scheme of the token.", "Bearer")},
    "503": {"Retry-After": ("Seconds until a retry may help.", "1")},
}


def build_openapi(path_prefix: str, *, needs_token: bool) -> dict[str, Any]:
    """Return the API's description; with `needs_token`, all paths but PROBES need one."""
    text, json_type = {"type": "string", "examples": ["ready: version 5, proved\n"]}, "application/json"
    paths = {
        **{resource.path: _image_operation(resource, resource.path, resource.__doc__) for resource in RESOURCES},
        **{path: _image_operation(Picture, path, summary) for path, summary in SHORT_URLS.items()},
        "/about": _operation("The model: name, versions and model card.", json_type, ABOUT, OF_MODEL),
        "/openapi.json": _operation("This description, for programs (OpenAPI).", json_type, {"type": "object"}),
        "/docs": _operation("This description, for people.", "text/html", {"type": "string"}),
        "/livez": _operation("200 while the gateway runs.", "text/plain", text | {"examples": ["alive\n"]}),
        "/readyz": _operation("200 while a model version is ready.", "text/plain", text, OF_MODEL),
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Ringo", "version": "1", "description": INTRODUCTION, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": path_prefix or "/"}],
        "paths": {path: {"get": operation} for path, operation in paths.items()},
        "components": {"schemas": {"Problem": PROBLEM}},
    }
    if needs_token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operation in paths.items():
        operation["operationId"] = re.sub("[^a-z]+", "_", path.removesuffix(".json")).strip("_")
        operation["responses"] |= {**_refusals(["400", "413"]), "414": {"description": REFUSALS["414"]}}
        if path in PROBES:
            continue
        operation["parameters"] = [*operation.get("parameters", ()), IF_NONE_MATCH]
        operation["responses"]["304"] = {"description": "The cached response is still valid."}
        if needs_token:
            operation["security"] = [{"token": []}]
            operation["responses"] |= _refusals(["401"])
    return described


def _image_operation(resource: type[Query], path: str, summary: str | None) -> dict[str, Any]:
    """Return the operation of `resource` at `path`, maybe a short URL."""
    described = []
    for name, field, parameter in parameters(resource):
        in_path = f"{{{name}}}" in path
        if path in SHORT_URLS and name in IN_PATH and not in_path:
            continue
        schema = dict(parameter.schema)
        if in_path and name == "format":
            schema["enum"] = list(EXTENSIONS)
        elif field.default not in (MISSING, None):
            schema["default"] = field.default if schema["type"] == "integer" else parameter.write(field.default)
        described.append(
            {
                "name": name,
                "in": "path" if in_path else "query",
                "required": in_path or field.default is MISSING,
                "description": parameter.description.split(" Default: ")[0] if in_path else parameter.description,
                "schema": schema,
                "example": resource.formats[0] if name == "format" else EXAMPLES[name],
            }
        )
    return {
        "summary": summary,
        "parameters": described,
        "responses": {
            "200": {
                "description": "The image.",
                "headers": _headers(HEADERS),
                "content": dict.fromkeys([*mimetypes(resource), ANY_BYTES], BINARY),
            },
            **_refusals([*OF_MODEL, *([] if "{format}" in path else ["406"])]),
        },
    }


def _operation(summary: str, mimetype: str, schema: dict[str, Any], refusals: Sequence[str] = ()) -> dict[str, Any]:
    responses = {"200": _content("The response.", mimetype, schema), **_refusals(refusals)}
    return {"summary": summary, "responses": responses}


def _content(description: str, mimetype: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {mimetype: {"schema": schema}}}


def _refusals(statuses: Sequence[str]) -> dict[str, Any]:
    described = {}
    for status in statuses:
        problem = {"$ref": "#/components/schemas/Problem"}
        described[status] = _content(REFUSALS[status], "application/problem+json", problem)
        if headers := REFUSAL_HEADERS.get(status):
            described[status]["headers"] = _headers(headers)
    return described


def _headers(texts: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    return {
        name: {"description": text, "schema": {"type": "string"}, "example": example}
        for name, (text, example) in texts.items()
    }
