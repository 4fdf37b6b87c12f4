"""`verify`: renders PNGs again from their text chunks, and compares the bytes."""

import io
import sys
import warnings
from collections.abc import Iterable
from contextlib import closing
from enum import Enum
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from PIL import Image
from werkzeug.datastructures import MultiDict

from serving.errors import MAX_SHOWN_CHARACTERS, InvalidRequest, RingoError, UnknownVersion
from serving.model_client.client import ModelClient
from serving.model_client.monitor import unchecked
from serving.rendering.encoding import RENDERER_VERSION
from serving.rendering.query import RESOURCES, Query, read_query
from serving.rendering.renderer import Renderer
from serving.settings import Settings

MAX_FILE_BYTES = 64 * 2**20  # five times the largest image of Ringo


class Verdict(Enum):
    """The verdict on a file, and its exit status; the lowest above 0 counts."""

    IDENTICAL = 0
    DIFFERENT = 1
    UNREADABLE = 2
    UNKNOWN_MODEL = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


def verify(files: Iterable[Path], settings: Settings) -> int:
    """Print one line for each of `files`; return the exit status, 0 if all are identical.

    If no model server answers, print one sentence on stderr and return the status of UNREADABLE.
    """
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)
    renderer = Renderer(client, settings.model_name, cache_bytes=0, model_calls=1)
    found = set()
    with closing(client):
        for file in files:
            try:
                verdict, reason = judge(file, renderer, settings.model_name)
            except RingoError as error:
                print(error, file=sys.stderr)
                return Verdict.UNREADABLE.value
            print(f"{printable(str(file))}: {verdict}{reason and f' ({reason})'}", flush=True)
            found.add(verdict.value)
    return min(found - {0}, default=0)


def judge(file: Path, renderer: Renderer, model_name: str) -> tuple[Verdict, str]:
    """Return the verdict on `file`, and its reason in a few words."""
    try:
        with file.open("rb") as opened:
            claimed = opened.read(MAX_FILE_BYTES + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no pixel is read, however many it claims
            with Image.open(io.BytesIO(claimed), formats=["PNG"]) as image:  # reads the header only
                facts = {name: str(text) for name, text in image.info.items()}
    except Image.DecompressionBombError:
        return Verdict.UNREADABLE, "more pixels than any picture of ours"
    except (OSError, SyntaxError, ValueError) as error:  # Pillow, of a damaged file
        return Verdict.UNREADABLE, getattr(error, "strerror", None) or "not a PNG"
    if len(claimed) > MAX_FILE_BYTES:
        return Verdict.UNREADABLE, f"more than {MAX_FILE_BYTES} bytes"
    if "Picture" not in facts:
        return Verdict.UNKNOWN_MODEL, "it doesn't say which picture it is"
    if facts.get("Model") != model_name:
        return Verdict.UNKNOWN_MODEL, f"of {quoted(facts.get('Model'))}, here is {model_name!r}"
    if facts.get("Renderer") != str(RENDERER_VERSION):
        return (
            Verdict.UNKNOWN_MODEL,
            f"encoded by renderer {quoted(facts.get('Renderer'))}, here is '{RENDERER_VERSION}'",
        )
    try:
        query = pinned_query(facts["Picture"])
        made = renderer.render(query, unchecked(query.version or 0))
    except UnknownVersion as error:
        return Verdict.UNKNOWN_MODEL, str(error)
    except InvalidRequest as error:
        return Verdict.DIFFERENT, str(error)
    return (Verdict.IDENTICAL if made == claimed else Verdict.DIFFERENT), ""


def pinned_query(address: str) -> Query:
    """Return the query of a permanent URL; raise InvalidRequest if it leaves a part open."""
    try:
        url = urlsplit(address)
    except ValueError:
        raise InvalidRequest("Picture", address, "the address of a picture") from None
    for resource in RESOURCES:
        if resource.path == url.path:
            query = read_query(resource, MultiDict(parse_qsl(url.query, keep_blank_values=True)))
            break
    else:
        raise InvalidRequest("Picture", address, f"one of {', '.join(resource.path for resource in RESOURCES)}")
    for name in ("seed", "format", "version"):
        if getattr(query, name, "") is None:
            raise InvalidRequest("Picture", address, f"an address with {name}")
    return query


def quoted(said: str | None) -> str:
    """Return `said` quoted, shortened, and safe for a terminal."""
    return repr(said if said is None else said[:MAX_SHOWN_CHARACTERS])


def printable(name: str) -> str:
    """Return the name of a file with unprintable characters escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)
