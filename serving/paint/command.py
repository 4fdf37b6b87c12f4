"""`paint`: writes images of many seeds to a folder; a rerun resumes.

The folder is the whole state. An image is complete if its SHA-256 is that of the manifest.
"""

import argparse
import errno
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate

from tqdm import tqdm

from serving.errors import printable
from serving.paint.client import PaintError, PictureClient, Secrets, VersionGoneError
from serving.paint.files import Files, Tars
from serving.paint.manifest import Manifest, read_rows
from serving.paint.output_folder import OutputFolder
from serving.paint.seeds import ALLOWED, Seeds
from serving.rendering.query import SIZE, STILL, VERSION, Picture
from serving.runtime.output import Stderr, write_error, write_line
from serving.settings import FOLDER, MAX_TIMEOUT_S, PEM_FILE, TARGET, Settings, flag, seconds, whole_numbers

# Python runs handlers in the main thread; a signal that another thread receives does not end its wait.
SIGNAL_STEP_S = 0.5
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
        shard = cls(whole_numbers(0, 99_999).read(index), whole_numbers(1, 100_000).read(count))
        if shard.index >= shard.count:
            raise ValueError
        return shard

    @property
    def manifest(self) -> str:
        """The name of its manifest; sorted names follow the seeds."""
        return "manifest.jsonl" if self.count == 1 else f"manifest-{self.index:05d}-of-{self.count:05d}.jsonl"

    def of(self, seeds: Seeds, layout: Files | Tars) -> Seeds:
        """Return this part of `seeds`: an equal share, without dividing a tar."""
        if isinstance(layout, Tars):
            ends: Sequence[int] = [0, *accumulate(Counter(seed // layout.per_folder for seed in seeds).values())]
        else:
            ends = range(len(seeds) + 1)
        first, behind = (ends[index * (len(ends) - 1) // self.count] for index in (self.index, self.index + 1))
        return seeds.between(first, behind)


@dataclass(eq=False)
class Work:
    """The streams of one run, and the state they share."""

    client: PictureClient
    folder: OutputFolder
    manifest: Manifest
    layout: Files | Tars
    bar: "tqdm[None]"
    missing: Iterator[list[int]]  # the seeds of each call to come
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards all of these

    def run(self, query: Picture, *, streams: int, any_version: bool) -> None:
        """Render all missing images with the options of `query`."""
        with ThreadPoolExecutor(streams, thread_name_prefix="stream") as pool:
            try:
                waiting = {pool.submit(self._stream, query, any_version=any_version) for _ in range(streams)}
                while waiting:
                    done, waiting = wait(waiting, SIGNAL_STEP_S, FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    self.client.end_silent_calls()
            except BaseException:  # Ctrl-C, too
                self.client.stop()
                raise

    def _stream(self, query: Picture, *, any_version: bool) -> None:
        while seeds := self._next_seeds():
            while seeds:
                done = 0
                try:
                    for stored in self.layout.store(self.client.paint(seeds, query)):
                        with self.lock:
                            self.manifest.append([self.folder.take(picture) for picture in stored])
                            self.bar.update(len(stored))
                        done += len(stored)
                except VersionGoneError:
                    if not any_version:
                        raise
                    query = replace(query, version=self.client.newest_version())
                seeds = seeds[done:]

    def _next_seeds(self) -> list[int]:
        with self.lock:
            return next(self.missing, [])


def paint(chosen: argparse.Namespace, secrets: Secrets) -> None:
    """Complete the folder `chosen.out`; finished images stay if it fails.

    Raises PaintError, and OSError if the folder can't be written.
    """
    layout = (Tars if chosen.layout == "tar" else Files)(chosen.out, chosen.format, chosen.per_folder)
    seeds = chosen.shard.of(chosen.seeds, layout)
    query = Picture(size=chosen.size, format=chosen.format)
    folder = OutputFolder(seeds, layout, query)
    chosen.out.mkdir(parents=True, exist_ok=True)
    every_s = 1.0 if sys.stderr.isatty() else 60.0  # a container's log keeps every line
    path = chosen.out / chosen.shard.manifest
    with (
        closing(Manifest(path)) as manifest,
        closing(PictureClient(chosen.target, secrets, patience_s=chosen.patience_s, report=_report)) as client,
    ):
        for manifest_path in sorted(chosen.out.glob("manifest*.jsonl")):  # of all shards
            for row in read_rows(manifest_path):
                folder.add(row, is_own=manifest_path == path)
        if unnamed := folder.check():
            _report(f"Images in {chosen.out} that the manifest does not name: {unnamed}; they are rendered again.")
        before = folder.count
        if before < len(seeds):
            version = _version(chosen, folder.versions, client)
            bar_options = {"unit": "image", "mininterval": every_s, "desc": "paint", "dynamic_ncols": True}
            with tqdm(total=len(seeds), initial=before, file=Stderr(sys.stderr), **bar_options) as bar:
                work = Work(client, folder, manifest, layout, bar, folder.missing())
                work.run(replace(query, version=version), streams=chosen.streams, any_version=chosen.any_version)
        client.stop()  # its report would blame the server while the manifest is written
        manifest.replace(folder.rows())
    write_line(f"{len(seeds):,} images are in {chosen.out}; {before:,} were there before.")


def _report(text: str) -> None:
    tqdm.write(printable(text), file=Stderr(sys.stderr))  # above the bar


def _version(chosen: argparse.Namespace, held: set[int], client: PictureClient) -> int:
    """Return the version to render: chosen, of the folder, or the newest."""
    if chosen.model_version is not None:
        version: int = chosen.model_version
        if held - {version} and not chosen.any_version:
            raise PaintError(
                f"The folder holds images of version {min(held - {version})}, and --model-version is {version}; "
                "give --any-version to mix versions."
            )
        return version
    return max(held) if held else client.newest_version()


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run `python -m serving paint` and return its exit status.

    It is 0 when all images are there, 1 after one sentence on stderr if not, 3 if their model version is gone, 130
    after Ctrl-C or SIGTERM. Raises SystemExit(2) if `argv` is not valid.
    """
    chosen = parse(argv)
    token = {name: text for name, text in environ.items() if name == "RINGO_TOKEN"}
    secrets = Secrets(chosen.ca, chosen.certificate, chosen.key, Settings.from_environment(token).token)
    try:
        paint(chosen, secrets)
    except KeyboardInterrupt:
        write_error(f"Stopped. Finished images are in {chosen.out}; rerun the same command to resume.")
        return INTERRUPTED
    except VersionGoneError as error:
        cause = str(error).removesuffix(".")  # quotes the server's message
        write_error(printable(f"{cause}. Give --any-version to continue with the newest; finished images stay."))
        return VERSION_GONE
    except PaintError as error:
        write_error(printable(str(error)))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fault = "The disk is full; free space, then rerun the command" if full else f"{chosen.out} can't be used"
        write_error(printable(f"{fault}: {error.filename or chosen.out}: {error.strerror}."))
    else:
        return 0
    return FAILED


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line. Raises SystemExit(2) after one sentence on stderr."""
    epilog = "A bearer token is taken from the environment: RINGO_TOKEN."
    parser = argparse.ArgumentParser(prog="python -m serving paint", description=__doc__, epilog=epilog)
    add, seeds = parser.add_argument, flag(Seeds.parse, ALLOWED, has_faults=True)
    add("--seeds", type=seeds, required=True, help="numbers and ranges, such as 0-9999 or 7,42,100-115")
    add("--out", type=flag(*FOLDER), required=True, help="the output folder; a rerun resumes from it")
    size, version = flag(SIZE.read, SIZE.allowed), flag(VERSION.read, VERSION.allowed)
    add("--size", type=size, help="pixels of the longer side (default: the model's own)")
    add("--format", choices=STILL, default=STILL[0], help="file format (default: png)")
    add("--model-version", type=version, help="the model version (default: that of the folder, else the newest)")
    add("--any-version", action="store_true", help="continue with the newest version if the folder's is gone")
    add("--layout", choices=("files", "tar"), default="files", help="single files, or tar shards for WebDataset")
    per_folder = flag(*whole_numbers(1, 100_000))
    add("--per-folder", type=per_folder, default=1000, help="seeds in each folder or tar (default: 1000)")
    shard = flag(Shard.parse, "INDEX/COUNT, the index from 0, such as 0/4")
    add("--shard", type=shard, default=Shard(0, 1), metavar="I/N", help="render part I of N of the seeds")
    add("--target", type=flag(*TARGET), default="127.0.0.1:9090", help="the batch servers (default: 127.0.0.1:9090)")
    add("--streams", type=flag(*whole_numbers(1, 64)), default=4, help="concurrent calls (default: 4)")
    patience = flag(*seconds(100 * MAX_TIMEOUT_S))
    add("--patience-s", type=patience, default=MAX_TIMEOUT_S, help="seconds to wait for an image (default: 600)")
    pem = flag(*PEM_FILE)
    add("--ca", type=pem, metavar="FILE", help="TLS: certificates of the servers' CA, PEM")
    add("--certificate", type=pem, metavar="FILE", help="mutual TLS: this client's certificate, PEM")
    add("--key", type=pem, metavar="FILE", help="mutual TLS: its key, PEM")
    chosen = parser.parse_args(argv)
    if (chosen.certificate is None) != (chosen.key is None) or (chosen.key and not chosen.ca):
        parser.error("--certificate and --key go together, and with --ca; give all three.")
    return chosen
