"""Requests of the gRPC service: their seeds and options, all checked."""

from collections.abc import Sequence

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from werkzeug.datastructures import MultiDict

from serving.errors import InvalidRequest
from serving.pb.ringo.v1 import picture_service_pb2 as pb
from serving.rendering.query import SEED, Picture, read_query

MAX_SEEDS = 100_000  # of one call: as varints at most 900 kB, which MAX_REQUEST_BYTES of server.py lets through

FORMATS = {pb.FORMAT_UNSPECIFIED: "png", pb.FORMAT_PNG: "png", pb.FORMAT_WEBP: "webp", pb.FORMAT_JPEG: "jpeg"}


def check_known(*messages: Message) -> None:
    """Raise InvalidRequest for unknown fields, which a later API may have."""
    for message in messages:
        for unknown in UnknownFieldSet(message):
            known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
            name = message.DESCRIPTOR.name
            raise InvalidRequest(f"{name}.{unknown.field_number}", "set", f"in {name} only {known}")


def read_picture(options: Message, seed: int) -> Picture:
    """Return the query of `seed` with `options`; raise InvalidRequest."""
    texts = {"seed": str(seed), "format": FORMATS.get(options.format, str(options.format))}
    for name in ("size", "model_version"):
        if options.HasField(name):
            texts[name.removeprefix("model_")] = str(getattr(options, name))
    try:
        return read_query(Picture, MultiDict(texts))
    except InvalidRequest as error:
        name = "model_version" if error.field == "version" else error.field
        raise InvalidRequest(f"options.{name}", error.value, error.allowed, error.fault) from error


def read_seed(request: Message) -> int:
    """Return the seed of a GenerateRequest; raise InvalidRequest without one."""
    texts = {name: str(getattr(request, name)) for name in ("seed", "name") if request.HasField(name)}
    seed = read_query(Picture, MultiDict(texts)).seed
    if seed is None:
        raise InvalidRequest("seed", None, SEED.allowed)
    return seed


def read_seeds(request: Message) -> Sequence[int]:
    """Return the seeds of a GenerateBatchRequest, in order; raise InvalidRequest."""
    match request.WhichOneof("which"):
        case "range":
            start, end = request.range.start, request.range.end
            if start < 0:
                raise InvalidRequest("range.start", str(start), SEED.allowed)
            if not 0 < end - start <= MAX_SEEDS:
                raise InvalidRequest("range.end", str(end), f"more than range.start, {start}, by at most {MAX_SEEDS}")
            return range(start, end)
        case "list":
            seeds = tuple(request.list.seeds)
            if not 0 < len(seeds) <= MAX_SEEDS:
                raise InvalidRequest("list.seeds", f"{len(seeds)} seeds", f"1 to {MAX_SEEDS} seeds")
            lowest = min(seeds)
            if lowest < 0:
                raise InvalidRequest(f"list.seeds[{seeds.index(lowest)}]", str(lowest), SEED.allowed)
            return seeds
        case _:
            raise InvalidRequest("which", None, "one of range and list")
