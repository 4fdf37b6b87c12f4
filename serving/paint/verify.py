"""`verify`: renders PNGs again from their text chunks, and compares the bytes."""

import io
import os
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, urlsplit

from PIL import Image
from werkzeug.datastructures import MultiDict

from serving.errors import MAX_SHOWN_CHARACTERS, InvalidRequest, RingoError, UnknownVersion, printable
from serving.model_client.client import ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.paint.files import TAR_ERRORS, open_file
from serving.rendering.encoding import RENDERER_VERSION
from serving.rendering.query import RESOURCES, Query, read_query
from serving.rendering.renderer import Renderer
from serving.runtime.output import write_error, write_line
from serving.settings import Settings

MAX_FILE_BYTES = 64 * 2**20  # five times the largest image of Ringo


class Verdict(Enum):
    """The verdict on a file, and its exit status."""

    IDENTICAL = 0
    DIFFERENT = 1
    UNREADABLE = 2
    UNKNOWN_MODEL = 3


def verify(paths: Iterable[Path], settings: Settings) -> int:
    """Print one line per PNG; return 0 or the lowest other status.

    If no model server answers, print one sentence on stderr and return the status of UNREADABLE.
    """
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)
    renderer = Renderer(client, settings.model_name, cache_bytes=0, model_calls=1)
    monitor, found = ModelMonitor(client), set()
    with closing(client):
        for name, file in (entry for path in paths for entry in open_pngs(path)):
            try:
                verdict, reason = judge(file, renderer, monitor, settings.model_name)
            except RingoError as error:
                write_error(str(error))
                return Verdict.UNREADABLE.value
            words = verdict.name.lower().replace("_", " ")
            write_line(f"{printable(name)}: {words}{reason and f' ({reason})'}")
            found.add(verdict.value)
    return min(found - {0}, default=0)


def open_pngs(path: Path) -> Iterator[tuple[str, IO[bytes] | str]]:
    """Yield name and file of each PNG at `path`, or a reason."""
    entry = None
    try:
        for entry in _pngs(path):
            yield entry
    except OSError as error:
        yield str(path), error.strerror or "not readable"
    except TAR_ERRORS:
        yield str(path), "the tar is damaged"
    else:
        if entry is None:
            yield str(path), "no PNG in it"


def _pngs(path: Path) -> Iterator[tuple[str, IO[bytes] | str]]:
    if path.is_dir():
        faults: list[OSError] = []  # rglob() would leave out folders that can't be listed
        walked = list(os.walk(path, onerror=faults.append))
        for file in sorted(Path(folder, name) for folder, _, names in walked for name in names):
            if file.suffix.lower() in (".png", ".tar"):
                yield from open_pngs(file)
        yield from ((str(fault.filename), fault.strerror or "not readable") for fault in faults)
        folders = [Path(folder, name) for folder, names, _ in walked for name in names]
        yield from ((str(link), "a link to a folder; name it itself") for link in folders if link.is_symlink())
        return
    with open_file(path) as opened:
        if path.suffix.lower() != ".tar":
            yield str(path), opened
            return
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None and member.name.endswith(".png"):
                    yield f"{path}/{member.name}", content
            opened.seek(tar.offset)
            rest = opened.read(MAX_FILE_BYTES)
            if not rest or any(rest):  # else its end, where tarfile stops
                raise tarfile.ReadError


def judge(file: IO[bytes] | str, renderer: Renderer, monitor: ModelMonitor, model_name: str) -> tuple[Verdict, str]:
    """Return the verdict on `file`, and its reason in a few words."""
    if isinstance(file, str):
        return Verdict.UNREADABLE, file
    try:
        claimed = file.read(MAX_FILE_BYTES + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no pixel is read, however many it claims
            with Image.open(io.BytesIO(claimed), formats=["PNG"]) as image:  # reads the header only
                facts = {name: str(text) for name, text in image.info.items()}
    except Image.DecompressionBombError:
        return Verdict.UNREADABLE, "more pixels than any image of Ringo"
    except (OSError, SyntaxError, *TAR_ERRORS) as error:  # Pillow, of a damaged file
        return Verdict.UNREADABLE, getattr(error, "strerror", None) or "not a PNG"
    if len(claimed) > MAX_FILE_BYTES:
        return Verdict.UNREADABLE, f"more than {MAX_FILE_BYTES} bytes"
    if "Picture" not in facts:
        return Verdict.UNKNOWN_MODEL, "it has no text chunk Picture"
    shown = {name: text[:MAX_SHOWN_CHARACTERS] for name, text in facts.items()}
    if facts.get("Model") != model_name:
        return Verdict.UNKNOWN_MODEL, f"of the model {shown.get('Model')!r}, not {model_name!r}"
    if facts.get("Renderer") != str(RENDERER_VERSION):
        return Verdict.UNKNOWN_MODEL, f"encoded by renderer {shown.get('Renderer')!r}, not '{RENDERER_VERSION}'"
    try:
        query = pinned_query(facts["Picture"])
        _, made = monitor.with_check(query.version or 0, partial(renderer.render, query))
    except UnknownVersion as error:
        return Verdict.UNKNOWN_MODEL, str(error)
    except InvalidRequest as error:
        return Verdict.DIFFERENT, str(error)
    return (Verdict.IDENTICAL if made == claimed else Verdict.DIFFERENT), ""


def pinned_query(text: str) -> Query:
    """Return the query of a permanent URL; raise InvalidRequest for any other."""
    resources = {resource.path: resource for resource in RESOURCES}
    try:
        url = urlsplit(text)
    except ValueError:
        raise InvalidRequest("Picture", text, "the permanent URL of an image") from None
    if url.path not in resources:
        raise InvalidRequest("Picture", text, f"one of {', '.join(resources)}")
    query = read_query(resources[url.path], MultiDict(parse_qsl(url.query, keep_blank_values=True)))
    for name in ("seed", "format", "version"):
        if getattr(query, name, "") is None:
            raise InvalidRequest("Picture", text, f"a URL with {name}")
    return query
