"""What a run takes in: its photos and their split. All of it is checked without Keras, whose import takes 4 s."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.data.holdout import Split, split_photos
from training.data.photos import Photos, load_photos
from training.errors import TrainingError
from training.records import read_record

MIN_PHOTOS = 50  # of fewer the discriminator knows each by heart within minutes, and the generator copies them


def refuse_file_as_folder(out: Path) -> None:
    """Raise TrainingError if a file lies where the folder `out` of `--out`, or one above it, would be."""
    nearest = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise TrainingError(f"--out is {str(out)!r}: allowed is a folder, and {nearest} is none.")


def refuse_run_among_photos(photos_folder: Path, run: Path) -> None:
    """Raise TrainingError if the run would lie inside the photos."""
    if run.resolve().is_relative_to(photos_folder.resolve()):
        raise TrainingError(f"--out {run} lies inside --photos {photos_folder}: the grids would become photos.")


def load_enough_photos(photos_folder: Path, run: Path, config: TrainingConfig) -> Photos:
    """Return the photos and say what became of every file. Raises TrainingError if they are too few."""
    photos = load_photos(
        photos_folder,
        config.image_size,
        cache_dir=run / "photos",
        memory_limit_bytes=config.memory_limit_mib * 2**20,
    )
    print(photos.summary.table())
    refuse_too_few_photos(len(photos.pixels), photos_folder)
    return photos


def refuse_too_few_photos(usable: int, folder: Path) -> None:
    """Raise TrainingError if `folder` has too few usable photos to learn from."""
    if usable < MIN_PHOTOS:
        raise TrainingError(f"{folder} has {usable} usable photos: at least {MIN_PHOTOS} are needed to learn from.")


def split_for_run(photos: Photos, run: Path, config: TrainingConfig) -> Split:
    """Return which of `photos` are held out.

    Raises TrainingError if the others do not fill one batch, or if `run` began with other photos.
    """
    split = split_photos(photos.files, config.holdout_fraction)
    refuse_large_batch(len(split.training), len(split.held_out), config.batch_size)
    record = run / "photos.json"
    if record.exists():
        begun, mine = read_record(record), describe(photos, split)
        if any(begun.get(name) != mine[name] for name in ("pixels_sha256", "held_out_arcs")):
            raise TrainingError(
                f"The photos or their names differ from those the run began with, or another version of Ringo read "
                f"them otherwise (see {record}): restore them, or choose a new --out for the new set."
            )
    return split


def refuse_large_batch(training: int, held_out: int, batch_size: int) -> None:
    """Raise TrainingError if the photos to train on do not fill one batch."""
    if training < batch_size:
        raise TrainingError(
            f"{training} usable photos are left to train on, with {held_out} more held out: "
            f"a batch needs {batch_size}, so choose a smaller --batch-size."
        )


def describe(photos: Photos, split: Split) -> dict[str, Any]:
    """Return what photos.json tells of them."""
    return {
        **asdict(photos.summary),
        "pixels_sha256": photos.sha256,
        "held_out": len(split.held_out),
        "held_out_arcs": [asdict(arc) for arc in split.arcs],
    }
