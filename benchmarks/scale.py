"""Time and memory of loading photos, by their number: python -m benchmarks.scale."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks import rounds

PHOTOS = (100, 1_000, 10_000, 100_000)
PHOTO_SIZE = (320, 240)
TRAINED_SIZE = 64  # pixels to which photos are decoded
PHOTOS_WAIT_S = 600.0


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


def main() -> int:
    """Measure, print, and write results/scale.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few photos; not written")
    parser.add_argument("--load-photos", nargs=3, metavar=("FOLDER", "CACHE", "BYTES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_photos:
        folder, cache, limit = arguments.load_photos
        load_here(folder, cache, int(limit))
        return 0
    result = photos(PHOTOS[:2] if arguments.quick else PHOTOS)
    for number, loading in result.items():
        print(f"{number} photos: {loading}", flush=True)
    rounds.write("scale", {"photos": result}, quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
