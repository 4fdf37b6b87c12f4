"""HTTP speed of Ringo, a limit and other servers: python -m benchmarks.serve.

The limit is the SavedModel, as TensorFlow 2 loads it, and the encoder in one process, one after the other: at the best
batch size, and for a single client at batch size 1. It has no server, client or queue. "session" is the same with the
model in a session, as in TensorFlow Serving and our model server: a single call is faster there.
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
from serving.model_server.servable import load as load_servable
from serving.rendering.encoding import encode

CLIENTS = (1, 4, 16, 64)
CACHED_CLIENTS = 16  # for responses without the model
ROUNDS, SECONDS = 3, 2.0
WARM_UP_S = 1.0
BATCHES = (4, 8, 16, 32, 64)
# Its batching measures the duration of calls, and would count the pause: 4 images a second for a single client instead
# of 39. While it waits it uses 0.6 % of a core.
NEVER_STOPPED = "bentoml"


class Limit:
    """Model and encoder in this process; `pixels` returns uint8[N, H, W, 3]."""

    def __init__(self, pixels: Callable[[Any], Any]) -> None:
        self.pixels = pixels
        self._next = 0
        self.batch = max(BATCHES, key=lambda size: max(self.images_a_second(size, 0.5) for _ in range(2)))

    @classmethod
    def of_function(cls, version: Path) -> "Limit":
        """Return the limit of `version` as TensorFlow 2 loads it."""
        loaded = tf.saved_model.load(str(version))  # must live as long as its functions
        return cls(lambda seeds: loaded.signatures["generate"](seeds=tf.constant(seeds, tf.int64))["images"].numpy())

    @classmethod
    def of_session(cls, version: Path) -> "Limit":
        """Return the limit of `version` in a session."""
        servable = load_servable(version)
        return cls(lambda seeds: servable.run("generate", {"seeds": np.array(seeds, np.int64)})["images"])

    def generate(self, batch: int) -> list[bytes]:
        """Return `batch` images of new seeds as PNG."""
        self._next += batch
        return [encode(pixels, "png", {}) for pixels in self.pixels(range(self._next - batch, self._next))]

    def images_a_second(self, batch: int, seconds: float) -> float:
        """Return the images a second in batches of `batch`."""
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            done += len(self.generate(batch))
        return done / (time.perf_counter() - begin)

    def load(self, clients: int, seconds: float) -> Load:
        """Return speed and latencies of one client or at best batch size."""
        if clients == 1:
            self.single(servers.SETTLING_S)
            return self.single(seconds)
        self.images_a_second(self.batch, servers.SETTLING_S)
        speed = self.images_a_second(self.batch, seconds)
        batch_ms = 1e3 * self.batch / speed
        return Load(speed, batch_ms, batch_ms, batch_ms, 0.0)

    def single(self, seconds: float) -> Load:
        """Return speed and latencies of a client without others."""
        times, begin, size = [], time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            started = time.perf_counter()
            size += sum(map(len, self.generate(1)))
            times.append(1e3 * (time.perf_counter() - started))
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        return Load(len(times) / (time.perf_counter() - begin), p50, p95, p99, size / len(times))


def check_image(server: servers.Server, limit: Limit) -> None:
    """Raise Failed if an image differs from the model's by over 1/255."""
    with Image.open(io.BytesIO(server.image(servers.CHECKED_SEED))) as image:
        difference = np.abs(np.asarray(image, np.int16) - limit.pixels([servers.CHECKED_SEED])[0]).max()
    if difference > 1:
        raise Failed(f"The image of seed {servers.CHECKED_SEED} differs by {difference}/255.")


def summary(loads: list[Load]) -> dict[str, dict[str, float]]:
    """Return the spread of each figure of `loads` over the rounds."""
    return {name: rounds.spread([asdict(load)[name] for load in loads]) for name in asdict(loads[0])}


def start_servers(
    stack: contextlib.ExitStack, names: Sequence[str], model: Path, limit: Limit
) -> tuple[dict[str, servers.Server], dict[str, str]]:
    """Return ours and `names`, running and checked, and errors of missing ones."""
    scratch, version = Path(stack.enter_context(tempfile.TemporaryDirectory())), newest_version(model).resolve()
    running: dict[str, servers.Server] = {}
    left_out: dict[str, str] = {}
    for name in ("ours", *names):
        log = scratch / f"{name}.log"
        try:
            start = servers.ours(model, log) if name == "ours" else servers.peer(name, version, log)
            server = stack.enter_context(start)
            check_image(server, limit)
            put_load(server.request, clients=16, seconds=WARM_UP_S)
            running[name] = server
        except (servers.NotReady, Failed) as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    return running, left_out


def measure(
    model: Path, names: tuple[str, ...], clients: tuple[int, ...], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Return the result of the part for ours and `names`."""
    version = newest_version(model).resolve()
    limits = {"limit": Limit.of_function(version), "session": Limit.of_session(version)}
    with contextlib.ExitStack() as stack:
        running, left_out = start_servers(stack, names, model, limits["limit"])
        stopped = {name: [] if name == NEVER_STOPPED else server.pids() for name, server in running.items()}
        for pids in stopped.values():
            rounds.stop(pids)
        new_seeds: dict[str, Any] = {}
        for number in clients:
            sides: dict[str, Callable[[], Load]] = {
                name: partial(limit.load, number, seconds) for name, limit in limits.items()
            }
            # Ours may refuse a few of 64 clients: requests of the settling client may still be in flight.
            sides |= {
                name: partial(servers.in_turn, server, stopped[name], clients=number, seconds=seconds, may_fail=True)
                for name, server in running.items()
            }
            new_seeds[str(number)] = compare(rounds.take_turns(repeats, sides))
            show(f"{number} clients, new seeds", new_seeds[str(number)])
        result: dict[str, Any] = {
            "limit_batch": limits["limit"].batch,
            "seconds": seconds,
            "rounds": repeats,
            "left_out": left_out,
            "new_seeds": new_seeds,
        }
        if "ours" in running:
            with rounds.resumed(stopped["ours"]):
                result["cached"] = measure_cached(running["ours"], repeats=repeats, seconds=seconds)
            show(f"{CACHED_CLIENTS} clients, ours", result["cached"])
        result["processes"] = {name: describe(server) for name, server in running.items()}
        for name, process in result["processes"].items():
            print(f"{name}: {process}", flush=True)
        return result


def compare(loads: Mapping[str, list[Load]]) -> dict[str, Any]:
    """Return each side's spread, and its ratios to limit and ours."""
    result: dict[str, Any] = {name: summary(turns) for name, turns in loads.items()}

    def ratio(name: str, other: str, figure: str = "responses_a_second") -> dict[str, float]:
        return rounds.ratio(*([asdict(load)[figure] for load in loads[side]] for side in (name, other)))

    for name, side in result.items():
        if name != "limit":
            side["of_limit"] = ratio(name, "limit")
        if name not in ("limit", "session", "ours") and "ours" in loads:
            side["ours_to_it"] = ratio("ours", name)
    if "ours" in loads:
        for name in ("limit", "session"):
            result["ours"][f"p50_to_{name}"] = ratio("ours", name, "p50_ms")
    return result


def describe(server: servers.Server) -> dict[str, Any]:
    """Return start times and memory of a server."""
    return {
        "first_response_s": server.first_response_s,
        "milestones_s": server.milestones_s,
        "memory_mib": server.resident_mib(),
        "largest_mib": server.largest_mib(),
    }


def measure_cached(server: servers.Server, *, repeats: int, seconds: float) -> dict[str, Any]:
    """Return the speed of ours without the model: cached images, and 304."""
    # After the stop, the gateway reconnects to the model server, and each worker caches the image.
    put_load(
        server.request, clients=CACHED_CLIENTS, seconds=servers.SETTLING_S, repeat=servers.CHECKED_SEED, may_fail=True
    )
    response, _ = servers.fetch(server.request, servers.CHECKED_SEED)
    etag = response.headers["ETag"]
    not_modified, _ = servers.fetch(server.request, servers.CHECKED_SEED, If_None_Match=etag)
    if not_modified.status != 304:
        raise Failed(f"The response to If-None-Match is {not_modified.status}.")
    load = partial(put_load, server.request, clients=CACHED_CLIENTS, seconds=seconds, repeat=servers.CHECKED_SEED)
    loads = rounds.take_turns(repeats, {"cached image": load, "304": partial(load, etag=etag)})
    return {name: summary(turns) for name, turns in loads.items()}


def show(title: str, sides: Mapping[str, Any]) -> None:
    """Print a table for one number of clients."""
    rounds.row(title, "a second", "p50 ms", "p95 ms", "p99 ms", "of limit", "ours to it")
    for name, figures in sides.items():
        cells = [f"{figures[key]['median']:.4g}" for key in ("responses_a_second", "p50_ms", "p95_ms", "p99_ms")]
        for key in ("of_limit", "ours_to_it"):
            ratio = figures.get(key)
            cells.append(f"{ratio['median']:.2f} ±{(ratio['high'] - ratio['low']) / 2:.2f}" if ratio else "")
        rounds.row(name, *cells)


def main() -> int:
    """Measure, print, and write results/serve.json; return 1 where wrk is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="ours and the limit alone, 1 and 16 clients; not written")
    parser.add_argument("--peers", nargs="*", choices=servers.PEERS, help="instead of all, or of none with --quick")
    parser.add_argument("--clients", nargs="+", type=int, help="numbers of clients at a time")
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
