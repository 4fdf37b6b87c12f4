"""Peak memory of a training at 256 px on 7,000 large photos, against its limit: python -m benchmarks.memory [DIR]."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks import rounds

PHOTOS, PHOTO_SIZE = 7_000, (1_400, 1_000)  # 1.4 megapixels, as cameras and phones send them
LIMIT_MIB = 4 * 1024
STEPS = 100  # as many as are measured beforehand; memory stands still after the first few


def draw_photos(folder: Path) -> None:
    """Write PHOTOS different JPEGs of PHOTO_SIZE."""
    for number in range(PHOTOS):
        photo = Image.new("RGB", PHOTO_SIZE, "white")
        draw = ImageDraw.Draw(photo)
        draw.ellipse((300, 100, 1_100, 900), fill=(number % 256, number // 256, 90))
        draw.text((20, 20), str(number), fill="black", font_size=60)  # neighbouring colours alone become equal files
        photo.save(folder / f"{number:04d}.jpg")


def measure(photos: Path, scratch: Path, *, size: int = 256) -> dict[str, int]:
    """Train STEPS batches on `photos` in a process of its own; return its peak resident memory beside the limit."""
    subprocess.run(
        [
            *(sys.executable, "-m", "training", "fit", "--photos", str(photos), "--out", str(scratch / "run")),
            *("--size", str(size), "--steps", str(STEPS), "--grid-every", "50", "--checkpoint-every-s", "30"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    used = json.loads((scratch / "run" / "photos.json").read_text())["used"]
    return {"image_size": size, "photos": used, "steps": STEPS, "peak_mib": peak_mib, "limit_mib": LIMIT_MIB}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if len(sys.argv) > 1:
            photos = Path(sys.argv[1])
        else:
            photos = scratch / "photos"
            photos.mkdir()
            draw_photos(photos)
        result = measure(photos, scratch)
        print(json.dumps(result), flush=True)
        rounds.write("memory", result)
