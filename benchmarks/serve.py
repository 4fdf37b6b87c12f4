"""Speed and memory of Ringo and other servers: python -m benchmarks.serve.

The limit is a one-process reference, not an upper bound: the SavedModel, as TensorFlow 2 loads it, and the encoder, one
after the other, at the best batch size, and for a single client at batch size 1. It has no server, client or queue.
"session" has the model in a session, as in TensorFlow Serving and our model server: a single call is faster there.
"""

import argparse
import contextlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import rounds, servers
from benchmarks.load import Failed, Load, NoLoadGenerator, put_load, require_wrk
from benchmarks.weights import SMALL, models_by_size, newest_version, version_name
from serving.model_server.servable import load as load_servable
from serving.rendering.encoding import encode

CLIENTS = (1, 4, 16, 64)
CLIENTS_OF_SMALL = (1, 16)
SIDES = ("ours", "genuine", *servers.PEERS)  # ours has the embedded model server, genuine TensorFlow Serving
CACHED_CLIENTS = 16  # for responses without the model
ROUNDS, SECONDS = 5, 2.0
SLOW = {"flask": 5}  # times SECONDS: at 64 clients, its latency is 1 s and more
WARM_UP_S = 1.0
BATCHES = (4, 8, 16, 32, 64)
# BentoML's batching measures the duration of calls, and would count the pause: 4 images a second for a single client
# instead of 39. While it waits it uses 0.6 % of a core.
NEVER_STOPPED = "bentoml"
# Of a server that ends under load, and of wrk then.
FAILURES = (OSError, http.client.HTTPException, subprocess.SubprocessError, Failed, LookupError, ValueError)


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
        """Return speed and latencies of one client, or speed at best batch size."""
        if clients == 1:
            self.single(servers.SETTLING_S)
            return self.single(seconds)
        self.images_a_second(self.batch, servers.SETTLING_S)
        return Load(self.images_a_second(self.batch, seconds), None, None, None, 0.0)

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


def summary(loads: list[Load]) -> dict[str, Any]:
    """Return the spread of each measured figure of `loads` over the rounds."""
    figures = [asdict(load) for load in loads]
    cpu_ms = [figure.pop("cpu_ms") for figure in figures]
    measured = [name for name, value in figures[0].items() if value is not None]
    return {name: rounds.spread([figure[name] for figure in figures]) for name in measured} | {
        "cpu_ms": {name: rounds.spread([ms[name] for ms in cpu_ms]) for name in cpu_ms[0]}
    }


def start_servers(
    stack: contextlib.ExitStack, names: Sequence[str], model: Path, limit: Limit
) -> tuple[dict[str, servers.Server], dict[str, str]]:
    """Return the servers `names`, running and checked, and errors of missing ones."""
    scratch, version = Path(stack.enter_context(tempfile.TemporaryDirectory())), newest_version(model).resolve()
    running: dict[str, servers.Server] = {}
    left_out: dict[str, str] = {}
    for name in names:
        log = scratch / f"{name}.log"
        try:
            if name in servers.PEERS:
                server = stack.enter_context(servers.peer(name, version, log))
            else:
                server = stack.enter_context(servers.ours(model, log, genuine=name == "genuine"))
            check_image(server, limit)
            running[name] = server
        except (servers.NotReady, Failed) as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    for name, server in running.items():  # here all workers of each have started
        attempt(name, partial(put_load, server.request, clients=16, seconds=WARM_UP_S), left_out)
    return {name: server for name, server in running.items() if name not in left_out}, left_out


def attempt(name: str, side: Callable[[], Load], left_out: dict[str, str]) -> Load | None:
    """Return the load of a side; if it fails, None, from then on."""
    if name in left_out:
        return None
    try:
        return side()
    except FAILURES as error:
        left_out[name] = str(error) if isinstance(error, Failed) else f"It ended under load ({type(error).__name__})."
        print(f"{name} did not finish: {error}", file=sys.stderr)
        return None


def take_turns(
    repeats: int, sides: Mapping[str, Callable[[], Load]], left_out: dict[str, str]
) -> dict[str, list[Load]]:
    """Return the loads of all sides that finish; the others' errors go to `left_out`."""
    attempts = {name: partial(attempt, name, side, left_out) for name, side in sides.items()}
    turns = rounds.take_turns(repeats, attempts)
    return {name: [load for load in loads if load] for name, loads in turns.items() if name not in left_out}


def measure(
    model: Path, names: Sequence[str], clients: Sequence[int], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Return the results of servers `names` and limits with one model."""
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
                name: partial(
                    servers.in_turn,
                    server,
                    stopped[name],
                    clients=number,
                    seconds=seconds * SLOW.get(name, 1),
                    may_fail=True,
                )
                for name, server in running.items()
                if name not in left_out
            }
            new_seeds[str(number)] = compare(take_turns(repeats, sides, left_out))
            show(f"{number} clients, new seeds", new_seeds[str(number)])
        result: dict[str, Any] = {
            "limit_batch": limits["limit"].batch,
            "new_seeds": new_seeds,
            "processes": {name: describe(server) for name, server in running.items() if name not in left_out},
        }
        for name, process in result["processes"].items():
            print(f"{name}: {process}", flush=True)
        if "ours" in result["processes"]:
            permalink = f"/generate?seed=SEED&format=png&version={version.name}"
            with rounds.resumed(stopped["ours"]):
                result["cached"] = measure_cached(
                    running["ours"], permalink, left_out, repeats=repeats, seconds=seconds
                )
            show(f"{CACHED_CLIENTS} clients, cached", result["cached"])
        return {**result, "left_out": left_out}


def compare(loads: Mapping[str, list[Load]]) -> dict[str, Any]:
    """Return each side's spread, and its ratios to limit and ours."""
    result: dict[str, Any] = {name: summary(turns) for name, turns in loads.items()}

    def ratio(name: str, other: str, figure: str = "responses_a_second") -> dict[str, float]:
        return rounds.ratio(*([asdict(load)[figure] for load in loads[side]] for side in (name, other)))

    for name, side in result.items():
        if name != "limit":
            side["of_limit"] = ratio(name, "limit")
            if "p50_ms" in result["limit"]:
                side["p50_to_limit"] = ratio(name, "limit", "p50_ms")
        if name in servers.PEERS and "ours" in loads:
            side["ours_to_it"] = ratio("ours", name)
    return result


def describe(server: servers.Server) -> dict[str, Any]:
    """Return the command, start times and memory of a server."""
    return {
        "command": server.command,
        "first_response_s": server.first_response_s,
        "milestones_s": server.milestones_s,
        "memory_mib": servers.memory_mib(server.pids()),
    }


def measure_cached(
    server: servers.Server, permalink: str, left_out: dict[str, str], *, repeats: int, seconds: float
) -> dict[str, Any]:
    """Return the speed of a cached image: gateway, 304 and nginx."""
    ours = replace(server, request=replace(server.request, path=permalink))
    load: dict[str, Any] = {"clients": CACHED_CLIENTS, "repeat": servers.CHECKED_SEED}
    # After the stop, the gateway reconnects to the model server, and each worker caches the image.
    put_load(ours.request, seconds=servers.SETTLING_S, may_fail=True, **load)
    etag = servers.fetch(ours.request, servers.CHECKED_SEED)[0].headers["ETag"]
    not_modified, _ = servers.fetch(ours.request, servers.CHECKED_SEED, If_None_Match=etag)
    if not_modified.status != 304:
        raise Failed(f"The response to If-None-Match is {not_modified.status}.")
    sides = {name: partial(ours.loaded, seconds=seconds, **load) for name in ("gateway", "304")}
    sides["304"].keywords["etag"] = etag
    with contextlib.ExitStack() as stack:
        try:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            proxy = stack.enter_context(servers.nginx(ours.request, scratch))
            sides["nginx"] = partial(proxy.loaded, seconds=seconds, **load)
        except servers.NotReady as error:
            left_out["nginx"] = str(error)
        return {name: summary(turns) for name, turns in take_turns(repeats, sides, left_out).items()}


def show(title: str, sides: Mapping[str, Any]) -> None:
    """Print a table for one number of clients."""
    rounds.row(title, "a second", "p50 ms", "p95 ms", "p99 ms", "of limit", "ours to it")
    for name, figures in sides.items():
        keys = ("responses_a_second", "p50_ms", "p95_ms", "p99_ms")
        cells = [f"{figures[key]['median']:.4g}" if key in figures else "" for key in keys]
        for key in ("of_limit", "ours_to_it"):
            ratio = figures.get(key)
            cells.append(f"{ratio['median']:.2f} ±{(ratio['high'] - ratio['low']) / 2:.2f}" if ratio else "")
        rounds.row(name, *cells)


def main() -> int:
    """Measure, print, and write results/serve.json; return 1 where wrk is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="one round, this model alone; not written")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES, help="not written if not all")
    parser.add_argument("--clients", nargs="+", type=int, help="numbers of clients at a time; not written")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of each load")
    arguments = parser.parse_args()
    try:
        require_wrk()
    except NoLoadGenerator as error:
        print(error, file=sys.stderr)
        return 1
    quick = arguments.quick or bool(arguments.clients) or set(arguments.sides) != set(SIDES)
    repeats = 1 if arguments.quick else arguments.rounds
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size, model in models_by_size(arguments.model, Path(scratch), small=not quick).items():
            clients = arguments.clients or (CLIENTS_OF_SMALL if size == str(SMALL) else CLIENTS)
            print(f"{size} px", flush=True)
            results[size] = measure(model, arguments.sides, clients, repeats=repeats, seconds=arguments.seconds)
    slow = {name: arguments.seconds * times for name, times in SLOW.items()}
    settings = {"rounds": repeats, "seconds": arguments.seconds, "slow_seconds": slow}
    rounds.write("serve", {"version": version_name(arguments.model), **settings, "sizes": results}, quick=quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
