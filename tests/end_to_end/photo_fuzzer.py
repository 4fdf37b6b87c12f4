"""Fuzzes `load_photos` with broken photos, guided by coverage of Pillow.

    python -m tests.end_to_end.photo_fuzzer CORPUS -runs=5000 ...

The flags are libFuzzer's; CORPUS starts with whole files. It ends at the first fault: an exception, a crash, more than
SECONDS or MEBIBYTES for one file, a file that is neither used nor skipped, or the loss of the good photo beside it.
"""

import sys
import tempfile
from pathlib import Path

import atheris
from PIL import Image

SECONDS = 20
MEBIBYTES = 2048  # 341 for a decoded photo, and again for each step to the small square

with atheris.instrument_imports(include=["PIL"]):
    Image.init()  # imports the module of each format

from training.data.photos import load_photos  # noqa: E402 (it imports Pillow, which must be instrumented)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (32, 32), "orange").save(folder / "good.png")

        def show(content: bytes) -> None:
            (folder / "broken").write_bytes(content)
            photos = load_photos(folder, 32, cache_dir=folder, memory_limit_bytes=2**20)
            assert photos.summary.files == 2 == photos.summary.used + sum(photos.summary.skipped.values())
            assert photos.pixels.shape == (photos.summary.used, 32, 32, 3)
            assert "good.png" in photos.files or photos.summary.used == 1  # or the other file is its copy

        limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEBIBYTES}", f"-artifact_prefix={sys.argv[1]}/"]
        atheris.Setup([*sys.argv, *limits], show, enable_python_coverage=True)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
