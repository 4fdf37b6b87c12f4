"""Speed and memory of `paint`: python -m benchmarks.paint.

The limit is a one-process reference: the SavedModel at its best batch size and the encoder, one after the other. Ours
are three processes with two connections between them, on the same cores. They are not paused while the limit runs.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import rounds
from benchmarks.servers import NOT_INHERITED, cpu_s, free_port, memory_mib
from benchmarks.weights import models_by_size, newest_version, version_name
from serving.pb.ringo.v1 import picture_service_pb2, picture_service_pb2_grpc
from serving.rendering.encoding import encode

ROUNDS, IMAGES = 5, 5_000  # of each side, in turns; includes the half second that `paint` takes to start
MANY = 10_000  # images, for memory
PAUSE_S, PAUSE_EVERY = 1.0, 1_000  # of a slow reader: about as long as it reads, after 1,000 images
READY_S = 60.0


@contextmanager
def servers(model: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], list[int]]]:
    """Run both servers; yield target, batch server and both process ids."""
    ports = [free_port() for _ in range(3)]
    settings = {"MODEL_SERVER": f"localhost:{ports[0]}", "BATCH_PORT": ports[1], "BATCH_METRICS_PORT": ports[2]}
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    env = inherited | {f"RINGO_{name}": str(value) for name, value in settings.items()}
    serving = [sys.executable, "-m", "serving"]
    flags = ["--port", str(ports[0]), "--model_base_path", str(model)]
    with (
        subprocess.Popen([*serving, "model-server", *flags], env=env, stderr=subprocess.DEVNULL) as model_server,
        subprocess.Popen([*serving, "batch"], env=env, stderr=subprocess.DEVNULL) as batch,
        grpc.insecure_channel(f"localhost:{ports[1]}") as channel,
    ):
        try:
            health, deadline = health_pb2_grpc.HealthStub(channel), time.monotonic() + READY_S
            while health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=READY_S).status != 1:
                assert time.monotonic() < deadline, "No model is ready."
                time.sleep(0.1)
            yield f"localhost:{ports[1]}", batch, [model_server.pid, batch.pid]
        finally:
            batch.terminate()
            model_server.terminate()


def start_paint(target: str, first: int, count: int, out: Path) -> "subprocess.Popen[bytes]":
    """Start `paint` with `count` seeds from `first` on."""
    options = ["--target", target, "--seeds", f"{first}:{first + count}", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "serving", "paint", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def speed(model: Path, target: str, pids: list[int], repeats: int) -> dict[str, object]:
    """Return the speed of `paint` and the limit, and servers' costs."""
    loaded = tf.saved_model.load(str(newest_version(model)))
    generate = loaded.signatures["generate"]

    def limit(count: int, batch: int) -> float:
        begin = time.perf_counter()
        for start in range(0, count, batch):
            for pixels in generate(seeds=tf.range(start, start + batch, dtype=tf.int64))["images"].numpy():
                encode(pixels, "png", {})
        return count / (time.perf_counter() - begin)

    def ours(folder: Path) -> float:
        start = next(first)
        begin = time.perf_counter()
        assert start_paint(target, start, IMAGES, folder / str(start)).wait() == 0
        return IMAGES / (time.perf_counter() - begin)

    first = itertools.count(0, IMAGES)  # no seed is cached from another round
    best = max((8, 16, 32, 64), key=lambda batch: max(limit(512, batch) for _ in range(2)))
    # Folders are removed at the end: ext4 without a journal skips files removed in the last minute at each creation,
    # which takes 0.2 ms an image.
    with tempfile.TemporaryDirectory() as out:
        sides = {"limit": lambda: limit(IMAGES - IMAGES % best, best), "ours": lambda: ours(Path(out))}
        sides["ours"]()  # the first one connects
        before = cpu_s(pids)
        speeds = rounds.take_turns(repeats, sides)
        cpu_ms = {name: round(1e3 * (s - before[name]) / (repeats * IMAGES), 3) for name, s in cpu_s(pids).items()}
    return {
        "limit_batch": best,
        "images": IMAGES,
        "rounds": repeats,
        "images_a_second": {name: rounds.spread(done) for name, done in speeds.items()},
        "of_limit": rounds.ratio(speeds["ours"], speeds["limit"]),
        "cpu_ms": cpu_ms,
        "memory_mib": memory_mib(pids),
    }


def resident_mib(pid: int) -> float:
    """Return the resident memory of the process `pid`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def memory(target: str, batch: "subprocess.Popen[bytes]") -> dict[str, object]:
    """Return both sides' memory after MANY / 10 images, and its peak."""
    with tempfile.TemporaryDirectory() as out:
        client = start_paint(target, 0, MANY, Path(out))
        manifest, samples = Path(out, "manifest.jsonl"), []
        while client.poll() is None:
            done = sum(1 for _ in manifest.open()) if manifest.exists() else 0
            if done > MANY / 10:
                samples.append((resident_mib(client.pid), resident_mib(batch.pid)))
            time.sleep(1.0)
        assert client.returncode == 0
    return {"images": MANY, **growth(samples)}


def memory_of_slow_reader(target: str, batch: "subprocess.Popen[bytes]") -> dict[str, object]:
    """Return the same for one stream whose reader, this process, pauses."""
    samples = []
    with grpc.insecure_channel(target) as channel:
        request = picture_service_pb2.GenerateBatchRequest(range={"start": 0, "end": MANY})
        for number, _ in enumerate(picture_service_pb2_grpc.PictureServiceStub(channel).GenerateBatch(request), 1):
            if number % PAUSE_EVERY == 0:
                time.sleep(PAUSE_S)
                if number > MANY / 10:
                    samples.append((resident_mib(os.getpid()), resident_mib(batch.pid)))
    assert number == MANY
    return {"images": MANY, "paused_s": PAUSE_S * MANY / PAUSE_EVERY, **growth(samples)}


def growth(samples: list[tuple[float, float]]) -> dict[str, object]:
    """Return the first and the largest memory of client and server."""
    both = np.array(samples)
    return {
        "client_mib": [round(value, 1) for value in (both[0, 0], both[:, 0].max())],
        "server_mib": [round(value, 1) for value in (both[0, 1], both[:, 1].max())],
    }


def main() -> int:
    """Measure, print, and write results/paint.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paint", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="speed alone, one round, this model alone; not written")
    arguments = parser.parse_args()
    quick, speeds = arguments.quick, dict[str, object]()
    result: dict[str, object] = {"version": version_name(arguments.model), "speed": speeds}
    with tempfile.TemporaryDirectory() as scratch:
        for size, model in models_by_size(arguments.model, Path(scratch), small=not quick).items():
            with servers(model) as (target, process, pids):
                speeds[size] = speed(model, target, pids, 1 if quick else ROUNDS)
                if model == arguments.model and not quick:
                    result["memory"] = memory(target, process)
                    result["memory_of_slow_reader"] = memory_of_slow_reader(target, process)
    print(json.dumps(result, indent=1), flush=True)
    rounds.write("paint", result, quick=quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
