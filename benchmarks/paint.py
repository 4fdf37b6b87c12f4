"""`paint` against the model in one process, and whether memory stands still: python -m benchmarks.paint [MODEL_FOLDER].

The limit is what nobody can do without: the SavedModel at its best batch size and the encoder, one after the other, in
one process. Ours are three processes with two connections between them, on the same cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")  # as the model server

import grpc
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.pb.ringo.v1 import picture_service_pb2, picture_service_pb2_grpc
from serving.pictures import encode
from serving.ports import listen

ROUNDS, PICTURES = 5, 5_000  # of each side, in turns
MANY = 50_000  # for memory
NAP_S, NAP_EVERY = 1.0, 1_000  # a reader that sleeps: about as long as it reads, after so many pictures
READY_S = 60.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with listen("127.0.0.1", 0, variable="", value="") as taken:
        return int(taken.getsockname()[1])


@contextmanager
def servers(model: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run model server and batch server; give the target and the batch server's process."""
    ports = [free_port() for _ in range(3)]
    settings = {"MODEL_SERVER": f"localhost:{ports[0]}", "BATCH_PORT": ports[1], "BATCH_METRICS_PORT": ports[2]}
    env = os.environ | {f"RINGO_{name}": str(value) for name, value in settings.items()}
    serving = [sys.executable, "-m", "serving"]
    flags = ["--port", str(ports[0]), "--model-base-path", str(model)]
    with (
        subprocess.Popen([*serving, "model-server", *flags], stderr=subprocess.DEVNULL) as model_server,
        subprocess.Popen([*serving, "batch"], env=env, stderr=subprocess.DEVNULL) as batch,
        grpc.insecure_channel(f"localhost:{ports[1]}") as channel,
    ):
        try:
            health, deadline = health_pb2_grpc.HealthStub(channel), time.monotonic() + READY_S
            while health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=READY_S).status != 1:
                assert time.monotonic() < deadline, "no model is ready"
                time.sleep(0.1)
            yield f"localhost:{ports[1]}", batch
        finally:
            batch.terminate()
            model_server.terminate()


def paint(target: str, first: int, count: int, out: Path) -> "subprocess.Popen[bytes]":
    """Begin to paint `count` seeds from `first` on."""
    words = ["--target", target, "--seeds", f"{first}:{first + count}", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "serving", "paint", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def speed(model: Path, target: str) -> dict[str, object]:
    """Return how many pictures a second `paint` makes, as a part of what the limit does, over interleaved rounds."""
    version = max(model.iterdir(), key=lambda folder: int(folder.name))
    generate = tf.saved_model.load(str(version)).signatures["generate"]

    def limit(first: int, count: int, batch: int) -> float:
        begin = time.perf_counter()
        for start in range(first, first + count, batch):
            for pixels in generate(seeds=tf.range(start, start + batch, dtype=tf.int64))["images"].numpy():
                encode(pixels, "png", {})
        return count / (time.perf_counter() - begin)

    best = max((8, 16, 32, 64), key=lambda batch: max(limit(0, 512, batch) for _ in range(2)))
    ratios, ours, theirs = [], [], []
    for number in range(ROUNDS):
        theirs.append(limit(number * PICTURES, PICTURES - PICTURES % best, best))
        with tempfile.TemporaryDirectory() as out:
            begin = time.perf_counter()
            assert paint(target, number * PICTURES, PICTURES, Path(out)).wait() == 0
            ours.append(PICTURES / (time.perf_counter() - begin))
        ratios.append(ours[-1] / theirs[-1])
    low, median, high = quantiles(ratios, n=4)
    return {
        "limit_batch": best,
        "limit_pictures_a_second": round(float(np.median(theirs))),
        "paint_pictures_a_second": round(float(np.median(ours))),
        "paint_of_limit": round(median, 2),
        "quartiles": [round(low, 2), round(high, 2)],
    }


def resident_mib(pid: int) -> float:
    """Return the resident memory of the process `pid`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def memory(target: str, batch: "subprocess.Popen[bytes]") -> dict[str, object]:
    """Return how far the resident memory of both sides grows from a tenth of MANY pictures to their end."""
    with tempfile.TemporaryDirectory() as out:
        client = paint(target, 0, MANY, Path(out))
        manifest, seen = Path(out, "manifest.jsonl"), []
        while client.poll() is None:
            done = sum(1 for _ in manifest.open()) if manifest.exists() else 0
            if done > MANY / 10:
                seen.append((resident_mib(client.pid), resident_mib(batch.pid)))
            time.sleep(1.0)
        assert client.returncode == 0
    return {"pictures": MANY, **growth(seen)}


def memory_asleep(target: str, batch: "subprocess.Popen[bytes]") -> dict[str, object]:
    """Return the same of one stream whose reader sleeps every now and then; this process is its client."""
    seen = []
    with grpc.insecure_channel(target) as channel:
        request = picture_service_pb2.GenerateBatchRequest(range={"start": 0, "end": MANY})
        for number, _ in enumerate(picture_service_pb2_grpc.PictureServiceStub(channel).GenerateBatch(request), 1):
            if number % NAP_EVERY == 0:
                time.sleep(NAP_S)
                if number > MANY / 10:
                    seen.append((resident_mib(os.getpid()), resident_mib(batch.pid)))
    assert number == MANY
    return {"pictures": MANY, "asleep_s": NAP_S * MANY / NAP_EVERY, **growth(seen)}


def growth(seen: list[tuple[float, float]]) -> dict[str, object]:
    """Return the first and the largest of the memory `seen`, of client and server."""
    both = np.array(seen)
    return {
        "client_mib": [round(value, 1) for value in (both[0, 0], both[:, 0].max())],
        "server_mib": [round(value, 1) for value in (both[0, 1], both[:, 1].max())],
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "models/apple")
    with servers(folder) as (where, process):
        print(json.dumps(speed(folder, where)), flush=True)
        print(json.dumps(memory(where, process)), flush=True)
        print(json.dumps(memory_asleep(where, process)), flush=True)
