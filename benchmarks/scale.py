"""Cost by number of clients and of photos: python -m benchmarks.scale."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks import rounds, servers
from benchmarks.load import NoLoadGenerator, put_load, require_wrk

CLIENTS = (1, 4, 16, 64, 256)
PHOTOS = (100, 1_000, 10_000, 100_000)
SECONDS = 3.0
ROUNDS = 3
PHOTO_SIZE = (320, 240)
TRAINED_SIZE = 64  # pixels to which photos are decoded
PHOTOS_WAIT_S = 600.0


def serving(model: Path, clients: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return speed and latency by number of clients, and CPU time."""
    with tempfile.TemporaryDirectory() as scratch, servers.ours(model, Path(scratch, "log")) as server:
        put_load(server.request, clients=16, seconds=1.0)
        before = server.cpu_s()
        measured = put_load(server.request, clients=16, seconds=2 * SECONDS)
        images = measured.responses_a_second * 2 * SECONDS
        cost = {name: round(1e3 * (used - before[name]) / images, 3) for name, used in server.cpu_s().items()}
        sides = {
            str(number): partial(put_load, server.request, clients=number, seconds=SECONDS, may_fail=True)
            for number in clients
        }
        loads = rounds.take_turns(repeats, sides)
    by_clients = {
        number: {key: rounds.spread([asdict(load)[key] for load in turns]) for key in asdict(turns[0])}
        for number, turns in loads.items()
    }
    return {"clients": by_clients, "cpu_ms_an_image": cost, "bytes_an_image": round(measured.bytes_a_response)}


def photos(counts: Sequence[int]) -> dict[str, Any]:
    """Return seconds and peak memory of loading photos, by their number."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        folder.mkdir()
        drawn = 0
        for count in counts:
            draw_photos(folder, drawn, count)
            drawn = count
            cache = str(Path(scratch, f"cache{count}"))
            result[str(count)] = {
                name: load_in_new_process(str(folder), cache, limit)
                for name, limit in (("in memory", 2**31), ("into the cache", 0), ("from the cache", 0))
            }
    return result


def draw_photos(folder: Path, first: int, end: int) -> None:
    """Write JPEGs of PHOTO_SIZE, no two alike."""
    for number in range(first, end):
        photo = Image.new("RGB", PHOTO_SIZE, "white")
        draw = ImageDraw.Draw(photo)
        draw.ellipse((80, 40, 240, 200), fill=(number % 256, number // 256 % 256, 90))
        draw.text((10, 10), str(number), fill="black", font_size=24)
        photo.save(folder / f"{number:06d}.jpg")


def load_in_new_process(folder: str, cache: str, limit: int) -> dict[str, float]:
    """Return seconds and peak memory of loading `folder` in another process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--load-photos", folder, cache, str(limit)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PHOTOS_WAIT_S).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def load_here(folder: str, cache: str, limit: int) -> None:
    """Print the result of `load_in_new_process` as JSON."""
    from training.data.photos import load_photos

    at_rest = peak_mib()
    begin = time.perf_counter()
    load_photos(Path(folder), TRAINED_SIZE, cache_dir=Path(cache), memory_limit_bytes=limit)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": round(seconds, 3), "added_mib": round(peak_mib() - at_rest, 1)}))


def peak_mib() -> float:
    """Return this process's peak memory; getrusage may return its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(model: Path, *, quick: bool) -> dict[str, Any]:
    """Return the result of the whole part."""
    result = {"serving": serving(model, CLIENTS[:3] if quick else CLIENTS, 1 if quick else ROUNDS)}
    keys = ("responses_a_second", "p50_ms", "p99_ms", "failed_share")
    rounds.row("clients", *keys, width=20)
    for number, load in result["serving"]["clients"].items():
        rounds.row(number, *(f"{load[key]['median']:.4g}" for key in keys), width=20)
    print(f"CPU ms an image: {result['serving']['cpu_ms_an_image']}")
    result["photos"] = photos(PHOTOS[:2] if quick else PHOTOS)
    for number, loading in result["photos"].items():
        print(f"{number} photos: {loading}", flush=True)
    return result


def main() -> int:
    """Measure, print, and write results/scale.json; return 1 where wrk is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="one round, less of everything; not written")
    parser.add_argument("--load-photos", nargs=3, metavar=("FOLDER", "CACHE", "BYTES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_photos:
        folder, cache, limit = arguments.load_photos
        load_here(folder, cache, int(limit))
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
