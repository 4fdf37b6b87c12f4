"""Queries: one frozen dataclass per resource, with a field for each parameter.

The fields define how a query is read from a URL, checked, written as a URL and described by OpenAPI.
"""

import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import lru_cache
from itertools import chain
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from werkzeug.datastructures import MultiDict

from serving.errors import InvalidRequest
from serving.rendering.encoding import MIMETYPES
from serving.settings import matching

MAX_SEED = 2**63 - 1  # of int64; versions are int64, too
EXAMPLE_SEEDS = (20, 82)  # whole, glossy apples of models/apple/5, as are all images between them
MAX_NAME_BYTES = 256  # as many as most mail servers take of an address
MAX_TILES = 64  # images of a response: one request to the model server
MAX_PIXELS = 2**20  # of a response: one image of the largest size, or 64 of 128

STILL = ("png", "webp", "jpeg")
MOVING = ("webp", "gif")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query: its reader, writer and description."""

    read: Callable[[str], Any]  # raises ValueError for invalid text, with the `fault` of InvalidRequest or nothing
    allowed: str
    schema: Mapping[str, Any]  # of JSON Schema, for OpenAPI
    description: str
    write: Callable[[Any], str] = str


def whole_number(low: int, high: int, description: str) -> Parameter:
    """Return a parameter for integers from `low` to `high`."""
    read = matching("0|[1-9][0-9]{0,18}", int, lambda number: low <= number <= high)
    allowed = f"one whole number from {low} to {high}, in decimal digits without sign, space or leading zero"
    schema = {"type": "integer", "format": "int64", "minimum": low, "maximum": high}
    return Parameter(read, allowed, schema, description)


def seed_of_name(name: str) -> int:
    """Return the seed of `name` by ringo-name/1 (docs/ringo-name-1.md); or raise ValueError."""
    text = unicodedata.normalize("NFC", name).encode()
    if len(text) > MAX_NAME_BYTES:
        raise ValueError(f"has {len(text)} bytes in UTF-8; at most {MAX_NAME_BYTES} are allowed")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError("has a control character; remove it")
    if not text:
        raise ValueError
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def read_range(term: str) -> range:
    """Return the seeds of `term`, one seed or first-last; raise ValueError."""
    first, dash, last = term.partition("-")
    start = SEED.read(first)
    stop = SEED.read(last) if dash else start
    if stop < start:
        raise ValueError(f"runs backwards at {term}; write {stop}-{start}")
    return range(start, stop + 1)


def _read_seeds(text: str) -> tuple[int, ...]:
    ranges = [read_range(term) for term in text.split(",")]
    count = sum(part.stop - part.start for part in ranges)  # len() of one may overflow
    if count > MAX_TILES:
        raise ValueError(f"is {count} seeds; at most {MAX_TILES} are allowed")
    return tuple(chain(*ranges))


def _write_seeds(seeds: Sequence[int]) -> str:
    """Return the shortest text that `_read_seeds` reads as `seeds`: runs as first-last."""
    terms: list[list[int]] = []
    for seed in seeds:
        if terms and seed == terms[-1][-1] + 1:
            terms[-1].append(seed)
        else:
            terms.append([seed])
    return ",".join(f"{term[0]}-{term[-1]}" if len(term) > 1 else str(term[0]) for term in terms)


def file_format(names: Sequence[str]) -> Parameter:
    """Return the parameter that chooses one of the formats `names`."""
    return Parameter(
        matching("|".join(names)),
        f"one of {', '.join(names)}",
        {"type": "string", "enum": list(names)},
        f"File format. Default: the preferred one in `Accept`, else {names[0]}.",
    )


SEED = whole_number(0, MAX_SEED, "The seed. Default: a random one, given in `Ringo-Seed`.")
NAME = Parameter(
    seed_of_name,
    f"a text of 1 to {MAX_NAME_BYTES} bytes in UTF-8 without control characters",
    {"type": "string", "minLength": 1, "maxLength": MAX_NAME_BYTES, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]+$"},
    "Any text instead of a seed, such as an e-mail address: 1 to 256 bytes of UTF-8. Its seed is in `Ringo-Seed`.",
)
END = whole_number(0, MAX_SEED, "The seed at this end.")
SEEDS = Parameter(
    _read_seeds,
    f"1 to {MAX_TILES} seeds, as whole numbers and ranges first-last, between commas: 7,42,100-115",
    {
        "type": "string",
        "pattern": "^[0-9]{1,19}(-[0-9]{1,19})?(,[0-9]{1,19}(-[0-9]{1,19})?)*$",
        "maxLength": MAX_TILES * len(f"{MAX_SEED}-{MAX_SEED},") - 1,
    },
    f"1 to {MAX_TILES} seeds: numbers, and ranges first-last, separated by commas.",
    _write_seeds,
)
COLUMNS = whole_number(1, MAX_TILES, "Images in a row.")
FRAMES = whole_number(2, MAX_TILES, "Number of images, both ends included.")
SIZE = whole_number(
    16,
    1024,
    "Pixels of an image's longer side, resized with the Lanczos filter; at most 1024 x 1024 pixels a response. "
    "Default: the model's own size.",
)
VERSION = whole_number(0, MAX_SEED, "The model version; the response is then immutable. Default: the newest.")


def param(parameter: Parameter, default: Any = MISSING, **others: Parameter) -> Any:
    """Return a dataclass field for `parameter`, required if it has no default.

    One of the parameters `others` may stand in its place.
    """
    return field(default=default, metadata={"parameter": parameter, "others": others})


@dataclass(frozen=True)
class Picture:
    """The image of one seed."""

    path: ClassVar[str] = "/generate"
    formats: ClassVar[tuple[str, ...]] = STILL
    tiles: ClassVar[tuple[int, int]] = (1, 1)  # columns, rows

    seed: int | None = param(SEED, None, name=NAME)
    size: int | None = param(SIZE, None)
    format: str | None = param(file_format(STILL), None)
    version: int | None = param(VERSION, None)


@dataclass(frozen=True)
class Grid:
    """A grid of many seeds, row by row."""

    path: ClassVar[str] = "/grid"
    formats: ClassVar[tuple[str, ...]] = STILL

    seeds: tuple[int, ...] = param(SEEDS, tuple(range(16)))
    columns: int = param(COLUMNS, 4)
    size: int | None = param(SIZE, None)
    format: str | None = param(file_format(STILL), None)
    version: int | None = param(VERSION, None)

    @property
    def tiles(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.columns, math.ceil(len(self.seeds) / self.columns)


@dataclass(frozen=True)
class Morph:
    """Images between two seeds, side by side."""

    path: ClassVar[str] = "/morph"
    formats: ClassVar[tuple[str, ...]] = STILL

    start: int = param(END)
    end: int = param(END)
    frames: int = param(FRAMES, 8)
    size: int | None = param(SIZE, None)
    format: str | None = param(file_format(STILL), None)
    version: int | None = param(VERSION, None)

    @property
    def tiles(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.frames, 1


@dataclass(frozen=True)
class Animation(Morph):
    """An animation from one seed to another and back, forever."""

    path: ClassVar[str] = "/animation"
    formats: ClassVar[tuple[str, ...]] = MOVING

    frames: int = param(FRAMES, 16)
    format: str | None = param(file_format(MOVING), None)


Query = Picture | Grid | Morph
Q = TypeVar("Q", bound=Query)
RESOURCES: tuple[type[Query], ...] = (Picture, Grid, Morph, Animation)


def parameters(resource: type[Q]) -> Iterator[tuple[str, Field[Any], Parameter]]:
    """Yield name, field and parameter of `resource`, in URL order."""
    for entry in fields(resource):
        yield entry.name, entry, entry.metadata["parameter"]
        for name, parameter in entry.metadata["others"].items():
            yield name, entry, parameter


def read_query(resource: type[Q], arguments: MultiDict[str, str]) -> Q:
    """Return the query of `resource` with `arguments`, a parsed query string.

    Raises InvalidRequest for an unknown, missing, repeated or invalid parameter, or too large an image.
    """
    known = {name: (entry, parameter) for name, entry, parameter in parameters(resource)}
    for name in arguments:
        if name not in known:
            raise InvalidRequest(name, arguments[name], f"one of the parameters {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, (entry, parameter) in known.items():
        texts = arguments.getlist(name)
        if texts and entry.name in values:
            raise InvalidRequest(name, texts[0], parameter.allowed, f"was given beside {entry.name}; give one of them")
        if texts:
            values[entry.name] = _read_once(name, parameter, texts)
        elif entry.default is MISSING:
            raise InvalidRequest(name, None, parameter.allowed)
    query = resource(**values)
    if query.size is not None:
        check_canvas(query, query.size)
    return query


def _read_once(name: str, parameter: Parameter, texts: Sequence[str]) -> Any:
    """Return the value of the one text in `texts`; raise InvalidRequest."""
    if len(texts) > 1:
        times = "twice" if len(texts) == 2 else f"{len(texts)} times"
        raise InvalidRequest(name, ", ".join(texts), parameter.allowed, f"was given {times}; give it once")
    try:
        return parameter.read(texts[0])
    except ValueError as error:
        raise InvalidRequest(name, texts[0], parameter.allowed, str(error)) from None


def check_canvas(query: Query, size: int) -> None:
    """Raise InvalidRequest if tiles of `size` pixels exceed MAX_PIXELS."""
    columns, rows = query.tiles
    if columns * rows * size**2 > MAX_PIXELS:
        allowed = f"a size that gives at most {MAX_PIXELS} pixels in {columns} x {rows} images"
        raise InvalidRequest("size", str(size), allowed)


@lru_cache(maxsize=1024)  # a response takes four: 8 us each, of 180 for a cached image
def canonical_url(query: Query) -> str:
    """Return path and query string of `query`, without defaults."""
    values = {
        entry.name: entry.metadata["parameter"].write(getattr(query, entry.name))
        for entry in fields(query)
        if getattr(query, entry.name) != entry.default
    }
    return f"{query.path}?{urlencode(values, safe=',')}" if values else query.path


def mimetypes(resource: type[Query]) -> list[str]:
    """Return the media types of `resource`, the preferred one first."""
    return [MIMETYPES[name] for name in resource.formats]
