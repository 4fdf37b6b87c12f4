"""The photos of a run and their split, loaded without Keras."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from training.config import TrainingConfig
from training.data.holdout import PhotoGroup, Split, split_photos
from training.data.photos import Photos, load_photos
from training.errors import TrainingError
from training.records import read_record

MIN_PHOTOS = 50  # with fewer, the discriminator memorises them within minutes, and the generator copies them


@dataclass(frozen=True)
class PhotosRecord:
    """The content of photos.json in a run or a version."""

    files: int
    used: int
    skipped: dict[str, int]  # reason to count
    pixels_sha256: str
    held_out: int
    held_out_arcs: tuple[PhotoGroup, ...]  # the key of existing runs and versions
    folder: str | None = None  # of a run; a version does not disclose it
    fates: dict[str, str] | None = None  # of a run: each file to "trained on", "held out" or why it is skipped
    batch: int | None = None  # of a version: batches done at its checkpoint

    def has_photos_of(self, other: "PhotosRecord") -> bool:
        """Return whether both have equal photos, split alike."""
        return (self.pixels_sha256, self.held_out_arcs) == (other.pixels_sha256, other.held_out_arcs)


def check_output_folder(out: Path, flag: str = "--out") -> None:
    """Raise TrainingError unless `out` can be a writable folder outside model versions."""
    existing = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise TrainingError(f"{flag} is {str(out)!r}, but {existing} is not a folder; set {flag} to a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise TrainingError(f"{flag} is {str(out)!r}, but you may not write to {existing}; set {flag} elsewhere.")
    for folder in (existing, *existing.parents):
        if (folder / "saved_model.pb").exists():
            raise TrainingError(f"{flag} {out} is in a version of a model, which never changes; set it elsewhere.")


def check_outside_photos(photos_folder: Path, out: Path) -> None:
    """Raise TrainingError if `out` is inside the photo folder."""
    if out.resolve().is_relative_to(photos_folder.resolve()):
        raise TrainingError(
            f"--out {out} is inside --photos {photos_folder}, so its images would become photos; set --out elsewhere."
        )


def load_run_photos(photos_folder: Path, run: Path, config: TrainingConfig) -> Photos:
    """Load the photos and print how many are used. Raises TrainingError if they are too few."""
    photos = load_photos(
        photos_folder,
        config.image_size,
        cache_dir=run / "photos",
        memory_limit_bytes=config.memory_limit_mib * 2**20,
        correct_black_level=config.correct_black_level,
    )
    print(photos.summary.format_table())
    check_photo_count(len(photos.pixels), photos_folder)
    return photos


def check_photo_count(usable: int, folder: Path) -> None:
    """Raise TrainingError if the `usable` photos are too few to train on."""
    if usable < MIN_PHOTOS:
        raise TrainingError(f"{folder} has {usable} usable photos, fewer than {MIN_PHOTOS}; add photos.")


def split_run_photos(photos: Photos, run: Path, config: TrainingConfig, *, new: bool = False) -> Split:
    """Return the split of `photos`. Raises TrainingError if they are too few, or not those of a `run` to resume."""
    split = split_photos(photos.files, config.holdout_fraction)
    check_batch_size(len(split.training), len(split.held_out), config.batch_size)
    record_file, record = run / "photos.json", describe_photos(photos, split)
    if not new and record_file.exists() and not record.has_photos_of(read_record(record_file, PhotosRecord)):
        raise TrainingError(
            f"The photos, their names, their decoding or a setting in config.json differ from those of {record_file}; "
            "restore them, or start over with --new."
        )
    return split


def check_batch_size(training: int, held_out: int, batch_size: int) -> None:
    """Raise TrainingError if the `training` photos do not fill one batch."""
    if training < batch_size:
        raise TrainingError(
            f"{training} photos to train on ({held_out} more are held out) do not fill a batch of {batch_size}; "
            "choose a smaller --batch-size."
        )


def describe_photos(photos: Photos, split: Split) -> PhotosRecord:
    """Return the content of photos.json for a run."""
    fates = dict.fromkeys(photos.files, "trained on") | {photos.files[row]: "held out" for row in split.held_out}
    return PhotosRecord(
        **asdict(photos.summary) | {"fates": photos.summary.fates | fates},
        pixels_sha256=photos.sha256,
        held_out=len(split.held_out),
        held_out_arcs=split.groups,
    )
