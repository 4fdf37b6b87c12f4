"""HTTP: pictures a second and latencies, ours against the limit and against peers: python -m benchmarks.serve.

The limit is the SavedModel, as TensorFlow 2 loads it, at its best batch size and the encoder, one after the other, in
one process with a thread per core, and for a lone request both at batch 1. No server, no client, no queue. Beside it
stands the same in a session, as TensorFlow Serving and our model server run it: a lone call is faster so.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import rounds, servers
from benchmarks.load import Failed, Load, NoLoadGenerator, put_load, require_wrk
from benchmarks.weights import newest_version
from serving.model_server.servable import load as servable_of
from serving.rendering.encoding import encode

CLIENTS = (1, 4, 16, 64)
KEPT_CLIENTS = 16  # for what needs no model
ROUNDS, SECONDS = 3, 2.0
WARM_UP_S = 1.0
SETTLING_S = 2.0  # of a turn don't count: others have had the caches and, where memory is scarce, the pages
BATCHES = (4, 8, 16, 32, 64)
CHECKED_SEED = 42
# Its batching learns how long calls take, and has the time for which it was stopped for a slow one: 4 pictures a second
# to a single client instead of 39. While it waits it takes 0.6 % of a core.
NEVER_HELD = "bentoml"


class Limit:
    """The model and the encoder in this process: `pixels` returns images uint8[N, H, W, 3] of seeds int64[N]."""

    def __init__(self, pixels: Callable[[Any], Any]) -> None:
        self.pixels = pixels
        self._next = 0
        self.batch = max(BATCHES, key=lambda size: max(self.pictures_a_second(size, 0.5) for _ in range(2)))

    @classmethod
    def by_function(cls, version: Path) -> "Limit":
        """Return that of `version` as TensorFlow 2 loads it."""
        loaded = tf.saved_model.load(str(version))  # which has to live as long as its functions
        return cls(lambda seeds: loaded.signatures["generate"](seeds=tf.constant(seeds, tf.int64))["images"].numpy())

    @classmethod
    def by_session(cls, version: Path) -> "Limit":
        """Return that of `version` in a session."""
        servable = servable_of(version)
        return cls(lambda seeds: servable.run("generate", {"seeds": np.array(seeds, np.int64)})["images"])

    def paint(self, batch: int) -> list[bytes]:
        """Return `batch` pictures of new seeds."""
        self._next += batch
        return [encode(pixels, "png", {}) for pixels in self.pixels(range(self._next - batch, self._next))]

    def pictures_a_second(self, batch: int, seconds: float) -> float:
        """Return how many pictures come in a second in batches of `batch`."""
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            done += len(self.paint(batch))
        return done / (time.perf_counter() - begin)

    def load(self, clients: int, seconds: float) -> Load:
        """Return what so many `clients` would see if nothing stood between: a lone one, or all in the best batch.

        Nobody waits in that, so its latencies are those of the whole batch.
        """
        if clients == 1:
            self.lone(SETTLING_S)
            return self.lone(seconds)
        self.pictures_a_second(self.batch, SETTLING_S)
        speed = self.pictures_a_second(self.batch, seconds)
        batch_ms = 1e3 * self.batch / speed
        return Load(speed, batch_ms, batch_ms, batch_ms, 0.0)

    def lone(self, seconds: float) -> Load:
        """Return what a caller would see who has the process for himself."""
        times, begin, size = [], time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            started = time.perf_counter()
            size += sum(map(len, self.paint(1)))
            times.append(1e3 * (time.perf_counter() - started))
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        return Load(len(times) / (time.perf_counter() - begin), p50, p95, p99, size / len(times))


def check_picture(server: servers.Server, limit: Limit) -> None:
    """Raise Failed unless `server` paints what the model paints: within 1/255, for one has unfused weights."""
    with Image.open(io.BytesIO(server.picture(CHECKED_SEED))) as image:
        difference = np.abs(np.asarray(image, np.int16) - limit.pixels([CHECKED_SEED])[0]).max()
    if difference > 1:
        raise Failed(f"The picture of seed {CHECKED_SEED} differs by {difference}/255.")


def in_turn(server: servers.Server, held: Sequence[int], **load: Any) -> Load:
    """Put a load on `server`, whose processes `held` run for that long; SETTLING_S of one client don't count.

    They are held again once it has answered what the load has left in flight: 64 pictures of Flask's take it 5 s.
    """
    with rounds.awake(held):
        put_load(server.request, **load | {"clients": 1, "seconds": SETTLING_S})
        done = put_load(server.request, **load)
        server.picture(CHECKED_SEED)
        return done


def summary(loads: list[Load]) -> dict[str, dict[str, float]]:
    """Return the spread of each number of `loads` over the rounds."""
    return {name: rounds.spread([asdict(load)[name] for load in loads]) for name in asdict(loads[0])}


def measure(
    model: Path, names: tuple[str, ...], clients: tuple[int, ...], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Return the result of the whole part for ours and the peers `names`."""
    version = newest_version(model).resolve()
    limits = {"limit": Limit.by_function(version), "session": Limit.by_session(version)}
    limit = limits["limit"]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        up: dict[str, servers.Server] = {}
        left_out: dict[str, str] = {}
        for name in ("ours", *names):
            log = Path(scratch, f"{name}.log")
            try:
                start = servers.ours(model, log) if name == "ours" else servers.peer(name, version, log)
                up[name] = stack.enter_context(start)
                check_picture(up[name], limit)
                put_load(up[name].request, clients=16, seconds=WARM_UP_S)
            except (servers.NotReady, Failed) as error:
                left_out[name] = str(error)
                up.pop(name, None)
                print(f"{name} is left out: {error}", file=sys.stderr)
        result: dict[str, Any] = {
            "limit_batch": limit.batch,
            "seconds": seconds,
            "rounds": repeats,
            "left_out": left_out,
            "unique": {str(number): {} for number in clients},
        }
        held = {name: [] if name == NEVER_HELD else server.pids() for name, server in up.items()}
        for pids in held.values():
            rounds.hold(pids)
        for number in clients:
            sides: Mapping[str, Callable[[], Load]] = {
                # What is left in flight may still be being answered when the next load comes: ours may refuse a few of
                # 64 clients for it.
                name: partial(in_turn, server, held[name], clients=number, seconds=seconds, may_fail=True)
                for name, server in up.items()
            }
            sides = {name: partial(one.load, number, seconds) for name, one in limits.items()} | sides
            loads = rounds.take_turns(repeats, sides)
            result["unique"][str(number)] = told = {name: summary(done) for name, done in loads.items()}
            for name in ("session", *up):
                told[name]["of_limit"] = speed_ratio(loads, name, "limit")
            for name in names:
                if name in up and "ours" in up:
                    told[name]["ours_to_it"] = speed_ratio(loads, "ours", name)
            if number == 1 and "ours" in up:
                for name in limits:
                    told["ours"][f"p50_to_{name}"] = rounds.ratio(
                        *([load.p50_ms for load in loads[side]] for side in ("ours", name))
                    )
            show(f"{number} clients, new seeds", told)
        if "ours" in up:
            with rounds.awake(held["ours"]):
                result["kept"] = measure_kept(up["ours"], repeats=repeats, seconds=seconds)
            show(f"{KEPT_CLIENTS} clients, ours", result["kept"])
        result["processes"] = {
            name: {
                "first_answer_s": server.first_answer_s,
                "milestones_s": server.milestones_s,
                "memory_mib": server.resident_mib(),
                "largest_mib": server.largest_mib(),
            }
            for name, server in up.items()
        }
        for name, told in result["processes"].items():
            print(f"{name}: {told}", flush=True)
        return result


def measure_kept(server: servers.Server, *, repeats: int, seconds: float) -> dict[str, Any]:
    """Return what ours answers without the model: a picture it has kept, and 304 to who has it."""
    # Who was held has yet to look for the model server again, and each worker to keep the picture.
    put_load(server.request, clients=KEPT_CLIENTS, seconds=SETTLING_S, repeat=CHECKED_SEED, may_fail=True)
    response, _ = servers.ask(server.request, CHECKED_SEED)
    etag = response.headers["ETag"]
    not_modified, _ = servers.ask(server.request, CHECKED_SEED, If_None_Match=etag)
    if not_modified.status != 304:
        raise Failed(f"The answer to If-None-Match is {not_modified.status}.")
    load = partial(put_load, server.request, clients=KEPT_CLIENTS, seconds=seconds, repeat=CHECKED_SEED)
    loads = rounds.take_turns(repeats, {"repeated seed": load, "304": partial(load, etag=etag)})
    return {name: summary(done) for name, done in loads.items()}


def speed_ratio(loads: Mapping[str, list[Load]], mine: str, theirs: str) -> dict[str, float]:
    """Return the ratio of two sides' pictures a second."""
    return rounds.ratio(*([load.answers_a_second for load in loads[side]] for side in (mine, theirs)))


def show(title: str, told: Mapping[str, Any]) -> None:
    """Print a table of one number of clients."""
    rounds.row(title, "a second", "p50 ms", "p95 ms", "p99 ms", "of limit", "ours to it")
    for name, numbers in told.items():
        cells = [f"{numbers[key]['median']:.4g}" for key in ("answers_a_second", "p50_ms", "p95_ms", "p99_ms")]
        for key in ("of_limit", "ours_to_it"):
            of = numbers.get(key)
            cells.append(f"{of['median']:.2f} ±{(of['high'] - of['low']) / 2:.2f}" if of else "")
        rounds.row(name, *cells)


def main() -> int:
    """Measure, print, and write results/serve.json; return 1 where there is no load generator."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="ours and the limit alone, 1 and 16 clients; not written")
    parser.add_argument("--peers", nargs="*", choices=servers.PEERS, help="instead of all, or of none with --quick")
    parser.add_argument("--clients", nargs="+", type=int, help="how many at a time")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    arguments = parser.parse_args()
    try:
        require_wrk()
    except NoLoadGenerator as error:
        print(error, file=sys.stderr)
        return 1
    peers = arguments.peers if arguments.peers is not None else () if arguments.quick else servers.PEERS
    clients = tuple(arguments.clients or ((1, 16) if arguments.quick else CLIENTS))
    result = measure(arguments.model, tuple(peers), clients, repeats=arguments.rounds, seconds=arguments.seconds)
    whole = not arguments.quick and tuple(peers) == servers.PEERS and clients == CLIENTS
    rounds.write("serve", result, quick=not whole)
    return 0


if __name__ == "__main__":
    sys.exit(main())
