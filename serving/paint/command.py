"""`paint`: the pictures of many seeds into a folder, over gRPC; what ended early goes on where it was.

The folder is the whole state: its manifest says what is there, and a picture counts if its bytes are what that says.
"""

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from serving.paint.client import PaintingError, PictureClient, Secrets, VersionGoneError
from serving.paint.files import Files, Painted, Tars
from serving.paint.manifest import InUseError, Manifest
from serving.paint.output_folder import Holdings
from serving.paint.seeds import ALLOWED, Seeds
from serving.rendering.query import SIZE, STILL, VERSION, Parameter, Picture
from serving.settings import MAX_TIMEOUT_S, flag, integer_reader, read_text, seconds_reader

# A signal that another thread receives does not end the wait of the first one, where Python's handlers run: steps do.
SIGNAL_STEP_S = 0.5
MANIFESTS = "manifest*.jsonl"  # of all shards
FAILED, VERSION_GONE, INTERRUPTED = 1, 3, 130  # exit statuses; argparse's own is 2


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` parts that share the seeds."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that `text` names, such as 0/4; raise ValueError."""
        index, _, count = text.partition("/")
        shard = cls(integer_reader(0, 99_999)(index), integer_reader(1, 100_000)(count))
        if shard.index >= shard.count:
            raise ValueError
        return shard

    @property
    def manifest(self) -> str:
        """The name of its manifest: in their names' order, those of all shards are the one of the whole."""
        return "manifest.jsonl" if self.count == 1 else f"manifest-{self.index:05d}-of-{self.count:05d}.jsonl"

    def of(self, seeds: Seeds, layout: Files | Tars) -> Seeds:
        """Return this part of `seeds`: as many as the others have, but a tar is never divided."""
        if isinstance(layout, Tars):
            ends: Sequence[int] = [0, *accumulate(len(group) for group in seeds.groups(layout.per_folder))]
        else:
            ends = range(len(seeds) + 1)
        first, behind = (ends[index * (len(ends) - 1) // self.count] for index in (self.index, self.index + 1))
        return seeds.between(first, behind)


class Work:
    """The streams of one run, and what they share."""

    def __init__(
        self, client: PictureClient, holdings: Holdings, manifest: Manifest, layout: Files | Tars, bar: "tqdm[None]"
    ) -> None:
        self._client = client
        self._holdings = holdings
        self._manifest = manifest
        self._layout = layout
        self._bar = bar
        self._calls = holdings.missing()
        self._lock = threading.Lock()

    def run(self, query: Picture, *, streams: int, any_version: bool) -> None:
        """Paint all that is missing as `query` says. Raises what PictureClient does, and OSError."""
        with ThreadPoolExecutor(streams, thread_name_prefix="stream") as pool:
            try:
                futures = [pool.submit(self._stream, query, any_version=any_version) for _ in range(streams)]
                waiting = set(futures)
                while waiting:
                    done, waiting = wait(waiting, SIGNAL_STEP_S, FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    self._client.end_silent_calls()
            except BaseException:  # Ctrl-C, too
                self._client.stop()
                raise

    def _stream(self, query: Picture, *, any_version: bool) -> None:
        while seeds := self._next_call():
            while seeds:
                try:
                    for stored in self._layout.store(self._client.paint(seeds, query)):
                        self._record(stored)
                        seeds = seeds[len(stored) :]
                except VersionGoneError:
                    if not any_version:
                        raise
                    query = replace(query, version=self._client.newest_version())

    def _next_call(self) -> list[int] | None:
        with self._lock:
            return next(self._calls, None)

    def _record(self, stored: Sequence[Painted]) -> None:
        with self._lock:
            self._manifest.append([self._holdings.take(picture) for picture in stored])
            self._bar.update(len(stored))


def paint(chosen: argparse.Namespace, secrets: Secrets) -> None:
    """Let the folder `chosen.out` hold all pictures that are asked for.

    Raises:
        PaintingError: it can't; what was painted stays, and the same command goes on.
        OSError: the folder can't be written.
    """
    layout = (Tars if chosen.layout == "tar" else Files)(chosen.out, chosen.format, chosen.per_folder)
    seeds = chosen.shard.of(chosen.seeds, layout)
    query = Picture(size=chosen.size, format=chosen.format)
    holdings = Holdings(seeds, layout, query)
    chosen.out.mkdir(parents=True, exist_ok=True)
    every_s = 1.0 if sys.stderr.isatty() else 60.0  # a container's log keeps every line
    with (
        Manifest(chosen.out / chosen.shard.manifest) as manifest,
        closing(PictureClient(chosen.target, secrets, patience_s=chosen.patience_s)) as client,
    ):
        for row in manifest.rows():
            holdings.add(row)
        for other in sorted(set(chosen.out.glob(MANIFESTS)) - {chosen.out / chosen.shard.manifest}):
            for row in Manifest(other).rows():
                holdings.see(row)
        holdings.check()
        before = holdings.count
        if before < len(seeds):
            version = _version(chosen, holdings.versions, client)
            with tqdm(total=len(seeds), initial=before, unit="picture", mininterval=every_s, desc="paint") as bar:
                work = Work(client, holdings, manifest, layout, bar)
                work.run(replace(query, version=version), streams=chosen.streams, any_version=chosen.any_version)
        manifest.replace(holdings.rows())
    print(f"{len(seeds):,} pictures are in {chosen.out}; {before:,} were there before.")


def _version(chosen: argparse.Namespace, held: set[int], client: PictureClient) -> int:
    """Return the version that paints what is missing: the one that was chosen, that of the folder, or the newest."""
    if chosen.model_version is not None:
        version: int = chosen.model_version
        if held - {version} and not chosen.any_version:
            raise PaintingError(
                f"The folder holds pictures of version {min(held - {version})}, and --model-version says {version}: "
                "--any-version lets several be together."
            )
        return version
    return max(held) if held else client.newest_version()


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run `python -m serving paint` and return its exit status.

    It is 0 when all pictures are there, 1 after one sentence on stderr if they can't be, 3 if their model version is
    gone, 130 after Ctrl-C or SIGTERM.
    Raises SystemExit(2) if `argv` is not valid.
    """
    chosen = parse(argv)
    # Explicit for both: a shell's background job would inherit an ignored SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    secrets = Secrets(chosen.ca, chosen.certificate, chosen.key, environ.get("RINGO_TOKEN"))
    try:
        paint(chosen, secrets)
    except KeyboardInterrupt:
        print(f"Stopped. Finished images are in {chosen.out}; rerun the same command to resume.", file=sys.stderr)
        return INTERRUPTED
    except VersionGoneError as error:
        told = str(error).removesuffix(".")  # with what the server said
        print(f"{told}. --any-version goes on with the newest; what is painted stays.", file=sys.stderr)
        return VERSION_GONE
    except (PaintingError, InUseError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "The disk is full" if full else f"{chosen.out} can't be used"
        print(f"{what}: {error.filename or chosen.out}: {os.strerror(error.errno or 0)}.", file=sys.stderr)
    else:
        return 0
    return FAILED


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line. Raises SystemExit(2) after one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m serving paint", description=__doc__)
    _add_output_flags(parser)
    _add_connection_flags(parser)
    parser.epilog = "A bearer token is taken from the environment: RINGO_TOKEN."
    chosen = parser.parse_args(argv)
    if (chosen.certificate is None) != (chosen.key is None) or (chosen.key and not chosen.ca):
        parser.error("--certificate and --key go together, and with --ca.")
    return chosen


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--seeds",
        type=flag(Seeds.parse, ALLOWED),
        required=True,
        help="which pictures, such as 0:10000 or 7,42,100:116",
    )
    add(
        "--out",
        type=flag(_path, "the path of a folder"),
        required=True,
        help="the folder; holds all there is to resume",
    )
    _add_parameter(parser, "--size", SIZE, "pixels of the longer side (default: the model's own)")
    add("--format", choices=STILL, default=STILL[0], help="file format (default: png)")
    _add_parameter(parser, "--model-version", VERSION, "who paints (default: who began the folder, else the newest)")
    add("--any-version", action="store_true", help="where that version is gone, go on with the newest one")
    add(
        "--layout",
        choices=("files", "tar"),
        default="files",
        help="a file each, or tar shards as WebDataset reads them",
    )
    add(
        "--per-folder",
        type=flag(integer_reader(1, 100_000), "a whole number from 1 to 100000"),
        default=1000,
        help="seeds to a folder, or to a tar (default: 1000)",
    )
    add(
        "--shard",
        type=flag(Shard.parse, "INDEX/COUNT, the index from 0, such as 0/4"),
        default=Shard(0, 1),
        metavar="I/N",
        help="paint part I of N of the seeds; all parts together are the whole, byte for byte",
    )


def _add_connection_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--target",
        type=flag(read_text, "a gRPC target"),
        default="dns:///localhost:9090",
        help="the batch servers: all addresses behind a dns:/// name take turns (default: dns:///localhost:9090)",
    )
    add(
        "--streams",
        type=flag(integer_reader(1, 64), "a whole number from 1 to 64"),
        default=4,
        help="calls at a time (default: 4)",
    )
    add(
        "--patience-s",
        type=flag(seconds_reader(100 * MAX_TIMEOUT_S), f"a number of seconds above 0, up to {100 * MAX_TIMEOUT_S:g}"),
        default=MAX_TIMEOUT_S,
        help="how long to try again while no picture comes (default: 600)",
    )
    add("--ca", type=Path, metavar="FILE", help="TLS: certificates that vouch for the server, PEM")
    add("--certificate", type=Path, metavar="FILE", help="mutual TLS: this client's certificate, PEM")
    add("--key", type=Path, metavar="FILE", help="mutual TLS: its key, PEM")


def _add_parameter(
    parser: argparse.ArgumentParser, name: str, parameter: Parameter, text: str, *, default: float | None = None
) -> None:
    parser.add_argument(name, type=flag(parameter.read, parameter.allowed), default=default, help=text)


def _path(text: str) -> Path:
    return Path(read_text(text))
