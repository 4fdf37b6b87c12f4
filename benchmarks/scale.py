"""How cost grows with clients, batches, picture sizes, photos and replicas: python -m benchmarks.scale.

Picture sizes are of untrained networks: what they paint costs what any picture costs, but for its encoding, which is
measured on enlarged pictures of the shipped model.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from benchmarks import rounds, servers
from benchmarks.load import NoLoadGenerator, put_load, require_wrk
from benchmarks.weights import newest_version

CLIENTS = (1, 4, 16, 64, 256)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256)
PHOTOS = (100, 1_000, 10_000, 100_000)
REPLICAS = (1, 2)
SECONDS = 3.0
ROUNDS = 3
PHOTO_SIZE = (320, 240)
TRAINED_SIZE = 64  # what photos are decoded to
PHOTOS_WAIT_S = 600.0


def serving(model: Path, clients: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return speed and latency of gateway and model server by the number of clients, and what a picture costs each."""
    with tempfile.TemporaryDirectory() as scratch, servers.ours(model, Path(scratch, "log")) as server:
        put_load(server.request, clients=16, seconds=1.0)
        before = server.cpu_s()
        measured = put_load(server.request, clients=16, seconds=2 * SECONDS)
        pictures = measured.answers_a_second * 2 * SECONDS
        cost = {name: round(1e3 * (used - before[name]) / pictures, 3) for name, used in server.cpu_s().items()}
        sides = {
            str(number): partial(put_load, server.request, clients=number, seconds=SECONDS, may_fail=True)
            for number in clients
        }
        loads = rounds.take_turns(repeats, sides)
    told = {
        number: {key: rounds.spread([asdict(load)[key] for load in mine]) for key in asdict(mine[0])}
        for number, mine in loads.items()
    }
    return {"clients": told, "cpu_ms_a_picture": cost, "bytes_a_picture": round(measured.bytes_an_answer)}


def replicas(model: Path, counts: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return the speed of so many gateways, each with a model server of its own, that share 16 clients."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        up = [stack.enter_context(servers.ours(model, Path(scratch, str(n)))) for n in range(max(counts))]
        pool = stack.enter_context(ThreadPoolExecutor(max(counts)))

        def speed(count: int) -> float:
            ask = partial(put_load, clients=16 // count, seconds=SECONDS)
            return sum(load.answers_a_second for load in pool.map(ask, [server.request for server in up[:count]]))

        speed(max(counts))
        measured = rounds.take_turns(repeats, {str(count): partial(speed, count) for count in counts})
    return {count: rounds.spread(speeds) for count, speeds in measured.items()}


def batches(model: Path, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return the milliseconds a picture of the bundled SavedModel by batch."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(newest_version(model)))
    sides = {str(n): partial(ms_a_picture, loaded.signatures["generate"], tf.range(n, dtype=tf.int64)) for n in sizes}
    for measure in sides.values():
        measure()
    return {name: rounds.spread(times) for name, times in rounds.take_turns(repeats, sides).items()}


def ms_a_picture(signature: Callable[..., Any], seeds: Any) -> float:
    """Return the milliseconds of one call, per picture."""
    begin = time.perf_counter()
    signature(seeds=seeds)["images"].numpy()
    return 1e3 * (time.perf_counter() - begin) / len(seeds)


def picture_sizes(model: Path, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return by the side of a picture: its operations, milliseconds at batch 1 and 16, and what encoding takes."""
    import tensorflow as tf

    from benchmarks.generator import operations
    from serving.rendering.encoding import encode, resize
    from training.config import TrainingConfig
    from training.export.fusion import fuse
    from training.export.signatures import Servable
    from training.model.gan import build_gan

    loaded = tf.saved_model.load(str(newest_version(model)))
    apples = loaded.signatures["generate"](seeds=tf.range(16, dtype=tf.int64))["images"].numpy()
    told: dict[str, Any] = {}
    sides: dict[str, Callable[[], float]] = {}
    for size in sizes:
        gan = build_gan(TrainingConfig(image_size=size))
        servable = Servable(gan, row_by_row=False)
        told[str(size)] = {"operations": operations(fuse(gan.ema_generator))}
        seeds = tf.TensorSpec((None,), tf.int64)
        images = tf.function(lambda seeds, s=servable: {"images": s.images_of(s.latents_of(seeds))}, [seeds])
        for batch in (1, 16):
            sides[f"{size} {batch}"] = partial(ms_a_picture, images, tf.range(batch, dtype=tf.int64))
        enlarged = [resize(apple, size) for apple in apples]

        def encoding(enlarged: Any = enlarged) -> float:
            begin = time.perf_counter()
            for pixels in enlarged:
                encode(pixels, "png", {})
            return 1e3 * (time.perf_counter() - begin) / len(enlarged)

        sides[f"{size} encoding"] = encoding
        told[str(size)]["bytes"] = round(np.mean([len(encode(pixels, "png", {})) for pixels in enlarged]))
    for measure in sides.values():
        measure()
    for name, times in rounds.take_turns(repeats, sides).items():
        size, what = name.split()
        told[size]["encoding_ms" if what == "encoding" else f"ms_at_batch_{what}"] = rounds.spread(times)
    return told


def photos(counts: Sequence[int]) -> dict[str, Any]:
    """Return by the number of photos: seconds and peak memory of reading them, into memory and through the cache."""
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        folder.mkdir()
        drawn = 0
        for count in counts:
            draw_photos(folder, drawn, count)
            drawn = count
            cache = str(Path(scratch, f"cache{count}"))
            told[str(count)] = {
                name: read_photos(str(folder), cache, limit)
                for name, limit in (("in memory", 2**31), ("into the cache", 0), ("from the cache", 0))
            }
    return told


def draw_photos(folder: Path, first: int, end: int) -> None:
    """Write JPEGs of PHOTO_SIZE, no two alike."""
    from PIL import Image, ImageDraw

    for number in range(first, end):
        photo = Image.new("RGB", PHOTO_SIZE, "white")
        draw = ImageDraw.Draw(photo)
        draw.ellipse((80, 40, 240, 200), fill=(number % 256, number // 256 % 256, 90))
        draw.text((10, 10), str(number), fill="black", font_size=24)
        photo.save(folder / f"{number:06d}.jpg")


def read_photos(folder: str, cache: str, limit: int) -> dict[str, float]:
    """Return what reading `folder` costs a process of its own: seconds and peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale", "--read-photos", folder, cache, str(limit)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PHOTOS_WAIT_S).stdout
    read: dict[str, float] = json.loads(told.splitlines()[-1])
    return read


def read_photos_here(folder: str, cache: str, limit: int) -> None:
    """Print as JSON what `read_photos` returns."""
    from training.data.photos import load_photos

    at_rest = peak_mib()
    begin = time.perf_counter()
    load_photos(Path(folder), TRAINED_SIZE, cache_dir=Path(cache), memory_limit_bytes=limit, progress=False)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": round(seconds, 3), "added_mib": round(peak_mib() - at_rest, 1)}))


def peak_mib() -> float:
    """Return this process's peak memory; getrusage would tell its parent's, if that is larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(model: Path, *, quick: bool) -> dict[str, Any]:
    """Return the result of the whole part."""
    repeats = 1 if quick else ROUNDS
    result: dict[str, Any] = {"serving": serving(model, CLIENTS[:3] if quick else CLIENTS, repeats)}
    show("clients", result["serving"]["clients"], ("answers_a_second", "p50_ms", "p99_ms", "failed_share"))
    print(f"processor ms a picture: {result['serving']['cpu_ms_a_picture']}")
    result["replicas"] = replicas(model, REPLICAS, repeats)
    show("replicas", {number: {"a second": told} for number, told in result["replicas"].items()}, ("a second",))
    result["batches"] = batches(model, BATCHES, 5 * repeats)
    show("batch", {number: {"ms": told} for number, told in result["batches"].items()}, ("ms",))
    result["sizes"] = picture_sizes(model, SIZES, 3 * repeats)
    show("size", result["sizes"], ("ms_at_batch_1", "ms_at_batch_16", "encoding_ms", "bytes"))
    result["photos"] = photos(PHOTOS[:2] if quick else PHOTOS)
    for number, told in result["photos"].items():
        print(f"{number} photos: {told}", flush=True)
    return result


def show(title: str, told: dict[str, Any], keys: Sequence[str]) -> None:
    """Print the medians of a table."""
    rounds.row(title, *keys, width=18)
    for name, numbers in told.items():
        cells = [numbers[key]["median"] if isinstance(numbers[key], dict) else numbers[key] for key in keys]
        rounds.row(name, *(f"{cell:.4g}" for cell in cells), width=18)


def main() -> int:
    """Measure, print, and write results/scale.json; return 1 where there is no load generator."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="one round, less of everything; not written")
    parser.add_argument("--read-photos", nargs=3, metavar=("FOLDER", "CACHE", "BYTES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read_photos:
        folder, cache, limit = arguments.read_photos
        read_photos_here(folder, cache, int(limit))
        return 0
    try:
        require_wrk()
    except NoLoadGenerator as error:
        print(error, file=sys.stderr)
        return 1
    rounds.write("scale", measure(arguments.model, quick=arguments.quick), quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
