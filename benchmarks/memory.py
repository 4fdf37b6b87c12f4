"""Peak memory of training on 7,000 large photos: python -m benchmarks.memory."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks import rounds

PHOTOS, PHOTOS_QUICK, PHOTO_SIZE = 7_000, 100, (1_400, 1_000)  # 1.4 megapixels, as from cameras and phones
SIZES = (128, 256)
LIMIT_MIB = 4 * 1024
STEPS = 100  # memory is constant after the first few of each stage


def draw_photos(folder: Path, count: int) -> None:
    """Write `count` different JPEGs of PHOTO_SIZE."""
    for number in range(count):
        photo = Image.new("RGB", PHOTO_SIZE, "white")
        draw = ImageDraw.Draw(photo)
        draw.ellipse((300, 100, 1_100, 900), fill=(number % 256, number // 256, 90))
        draw.text((20, 20), str(number), fill="black", font_size=60)  # close colours alone would give equal files
        photo.save(folder / f"{number:04d}.jpg")


def peak_mib(photos: Path, run: Path, size: int) -> int:
    """Train STEPS batches in another process; return its peak resident memory."""
    command = [sys.executable, "-m", "training", "fit", "--photos", str(photos), "--out", str(run)]
    command += ["--size", str(size), "--steps", str(STEPS), "--grid-every", "50", "--checkpoint-every-s", "30"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return usage.ru_maxrss // 1024


def main() -> int:
    """Measure, print, and write results/memory.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("photos", nargs="?", type=Path, metavar="FOLDER", help="of photos to train on; default: drawn")
    parser.add_argument("--quick", action="store_true", help=f"{PHOTOS_QUICK} photos, {SIZES[0]} px alone; not written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos = arguments.photos or scratch / "photos"
        if not arguments.photos:
            photos.mkdir()
            draw_photos(photos, PHOTOS_QUICK if arguments.quick else PHOTOS)
        sizes = SIZES[:1] if arguments.quick else SIZES
        peaks = {str(size): peak_mib(photos, scratch / f"run{size}", size) for size in sizes}
        used = json.loads((scratch / f"run{SIZES[0]}" / "photos.json").read_text())["used"]
    result = {"photos": used, "steps": STEPS, "peak_mib": peaks, "limit_mib": LIMIT_MIB}
    print(json.dumps(result), flush=True)
    rounds.write("memory", result, quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
