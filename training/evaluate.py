"""How good the pictures of a run or of a model version are, compared with photos; the model card quotes it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.checkpoints import load_gan
from training.config import TrainingConfig
from training.errors import TrainingError
from training.features import build_extractor, features_of_photos
from training.figures import Copies, Coverage, Distances, Evaluation, Nearness
from training.holdout import Split, split_photos
from training.metrics import Features, frechet_distance, kernel_distance, nearest
from training.painting import AT_ONCE, paint
from training.photos import Photos, load_photos
from training.records import read_record, write_record
from training.varieties import find_varieties

MIN_COUNT = 50  # fewer say nothing: KID's deviation then exceeds what separates good from bad
SMALL = 32  # pixels: the side at which pictures are compared by pixels; finer detail would hide likeness
NEEDED_SHARE = 0.25  # of its share of the photos, for a variety to be covered


@dataclass(frozen=True)
class Painter:
    """A generator to be judged, and what is known of its training."""

    name: str
    batch: int | None
    image_size: int
    paint: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    holdout_fraction: float
    photos: dict[str, Any] | None  # photos.json of its run; None if all photos count as seen


@dataclass(frozen=True)
class Evaluated:
    """The figures, and what they were taken from: for a report that shows it."""

    evaluation: Evaluation
    pictures: NDArray[np.uint8]  # [N, S, S, 3], of seeds 0 to N - 1
    photos: Photos
    nearest_photos: NDArray[np.intp] | None  # [N]: rows of `photos`, the nearest trained on, by pixels
    nearest_distances: NDArray[np.float32] | None  # [N]: RMS of 255 between pictures of 32x32


def evaluate(
    model: Path,
    photos_folder: Path,
    *,
    out: Path,
    count: int = 1900,
    checkpoint: str = "best",
    network: str = "efficientnet-lite0",
    weights: Path | None = None,
    memory_limit_mib: int = 2048,
) -> Evaluated:
    """Compare seeds 0 to `count` - 1 of `model`, a run or version folder, with photos; write `out`/evaluation.json.

    Photos are cropped and scaled as for training, so that sharpness is compared like with like. Fewer photos than
    `count` means fewer of both: FID depends on the number. `out` also keeps the photos' features for the next time.

    Raises:
        TrainingError: `model` is neither, there are fewer than MIN_COUNT photos, or the judge's weights are missing.
    """
    painter = open_model(model, checkpoint)
    extract = build_extractor(network, weights)
    photos = load_photos(
        photos_folder, painter.image_size, cache_dir=out / "photos", memory_limit_bytes=memory_limit_mib * 2**20
    )
    count = min(count, len(photos.pixels))
    if count < MIN_COUNT:
        raise TrainingError(f"{count} pictures of each kind are too few to compare: at least {MIN_COUNT} are needed.")
    real = features_of_photos(extract, photos, out / "photos")
    pictures = painter.paint(np.arange(count))
    generated = extract(pictures, progress=True)

    split, remarks = split_of(painter, photos)
    chosen = np.sort(np.random.default_rng(0).choice(len(real), count, replace=False))
    nearest_photos = nearest_distances = copies = held_out = None
    if split:
        held_out = compare(real[split.held_out], generated) if len(split.held_out) >= MIN_COUNT else None
        if not held_out and split.arcs:
            remarks += (f"{len(split.held_out)} photos held out are too few for a KID ({MIN_COUNT} are needed).",)
        copies, rows, nearest_distances = find_copies(photos.pixels, pictures, real, generated, split)
        nearest_photos = split.training[rows]
    evaluation = Evaluation(
        model=painter.name,
        batch=painter.batch,
        features=extract.name,
        photos=f"{photos_folder.resolve().name}, {photos.summary.used:,} photos",
        against_all=compare(real[chosen], generated),
        against_held_out=held_out,
        copies=copies,
        coverage=find_coverage(photos.files, real, generated),
        remarks=remarks,
    )
    write_record(out / "evaluation.json", asdict(evaluation))
    return Evaluated(evaluation, pictures, photos, nearest_photos, nearest_distances)


def is_version(model: Path) -> bool:
    """Return whether `model` is a version folder, which never changes, and not a run folder."""
    return (model / "saved_model.pb").is_file()


def open_model(model: Path, checkpoint: str) -> Painter:
    """Return the generator of a run folder, or of an exported version. Raises TrainingError if there is none."""
    if is_version(model):
        return _open_version(model)
    gan = load_gan(model, checkpoint)
    return Painter(
        name=model.resolve().name,
        batch=int(gan.optimizer.iterations),
        image_size=gan.config.image_size,
        paint=lambda seeds: paint(gan.ema_generator, seeds),
        holdout_fraction=gan.config.holdout_fraction,
        photos=read_record(model / "photos.json"),
    )


def _open_version(version: Path) -> Painter:
    import tensorflow as tf

    try:
        generate = tf.saved_model.load(str(version)).signatures["generate"]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise TrainingError(f"{version} has no signature `generate`: {error}.") from error

    def paint_seeds(seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        parts = (seeds[i : i + AT_ONCE] for i in range(0, len(seeds), AT_ONCE))
        return np.concatenate([generate(seeds=tf.constant(part, tf.int64))["images"].numpy() for part in parts])

    config, record = version / "config.json", version / "photos.json"
    known = config.is_file() and record.is_file()  # version 1 of the apples came before they were kept
    return Painter(
        name=f"{version.resolve().parent.name}, version {version.resolve().name}",
        batch=int(read_record(record)["batch"]) if known else None,
        image_size=generate.structured_outputs["images"].shape[1],
        paint=paint_seeds,
        holdout_fraction=TrainingConfig.from_json(config.read_text(encoding="utf-8")).holdout_fraction
        if known
        else 0.0,
        photos=read_record(record) if known else None,
    )


def split_of(painter: Painter, photos: Photos) -> tuple[Split | None, tuple[str, ...]]:
    """Return which of `photos` the training saw, None if they are not those of the training; and remarks about it."""
    split = split_photos(photos.files, painter.holdout_fraction)
    if painter.photos is None:
        return split, ("The version does not say which photos it was trained on: all are taken as seen.",)
    if painter.photos.get("pixels_sha256") != photos.sha256 or painter.photos.get("held_out_arcs") != [
        asdict(arc) for arc in split.arcs
    ]:
        return None, ("These are not the photos of the training: nothing can be said about copies.",)
    return split, ()


def compare(real: Features, generated: Features) -> Distances:
    """Return KID of two sets of features, and FID if they are of one size."""
    distance, deviation = kernel_distance(real, generated)
    return Distances(
        pictures=len(generated),
        photos=len(real),
        kid_x1000=round(1000 * distance, 2),
        kid_x1000_std=round(1000 * deviation, 2),
        fid=round(frechet_distance(real, generated), 2) if len(real) == len(generated) else None,
    )


def find_copies(
    pixels: NDArray[np.uint8], pictures: NDArray[np.uint8], real: Features, generated: Features, split: Split
) -> tuple[Copies, NDArray[np.intp], NDArray[np.float32]]:
    """Return the check against copying, and for each picture the nearest of `split.training` by pixels, and how far."""
    small, seen = shrink(pixels), real[split.training]
    rows, distances = nearest(shrink(pictures), small[split.training])
    mine = _nearness(distances), _nearness(nearest(generated, seen)[1])
    unseen: tuple[Nearness | None, Nearness | None] = None, None
    if len(split.held_out):
        held_out_distances = nearest(small[split.held_out], small[split.training])[1]
        unseen = _nearness(held_out_distances), _nearness(nearest(real[split.held_out], seen)[1])
    copies = Copies(
        pictures_by_pixels=mine[0],
        held_out_by_pixels=unseen[0],
        pictures_by_features=mine[1],
        held_out_by_features=unseen[1],
        verdict=_verdict(mine[0], unseen[0], len(pictures), len(split.held_out)),
    )
    return copies, rows, distances


def shrink(pictures: NDArray[np.uint8]) -> Features:
    """Return `pictures` uint8[N, S, S, 3] as float32[N, SMALL * SMALL * 3], 0 to 255, by averaging pixels."""
    n, size, _, _ = pictures.shape
    side = size // SMALL
    small = np.empty((n, SMALL, SMALL, 3), np.float32)
    for start in range(0, n, AT_ONCE):
        part = pictures[start : start + AT_ONCE].reshape(-1, SMALL, side, SMALL, side, 3)
        small[start : start + AT_ONCE] = part.mean(axis=(2, 4), dtype=np.float32)
    return small.reshape(n, -1)


def _nearness(distances: NDArray[np.float32]) -> Nearness:
    closest, median = np.quantile(distances, [0.05, 0.5])
    return Nearness(median=round(float(median), 3), closest_5_percent=round(float(closest), 3))


def _verdict(pictures: Nearness, held_out: Nearness | None, count: int, held_out_count: int) -> str:
    if held_out is None:
        return (
            f"Unknown: half of {count:,} pictures lie within {pictures.median:.1f}/255 of a photo trained on (RMS at "
            f"{SMALL}x{SMALL}), but no photo was held out to compare that with."
        )
    figures = (
        f"half of {count:,} pictures lie within {pictures.median:.1f}/255 of a photo trained on (RMS at "
        f"{SMALL}x{SMALL}), half of {held_out_count:,} photos held out within {held_out.median:.1f}; the closest "
        f"5 % within {pictures.closest_5_percent:.1f} and {held_out.closest_5_percent:.1f}."
    )
    if pictures.median < held_out.median:
        return f"The pictures come closer to the photos trained on than new photos do, as copies would: {figures}"
    if pictures.closest_5_percent < held_out.closest_5_percent:
        return f"No sign of copying in most pictures, but the closest may be copies: {figures}"
    return f"No sign of copying: {figures}"


def find_coverage(files: tuple[str, ...], real: Features, generated: Features) -> Coverage:
    """Return which varieties of the photos the pictures show.

    The nearest photo decides because it tells a photo's own variety in 1,899 of 1,900 cases; the coverage of Naeem et
    al. (2020) asks for pictures within the distance of a photo's fifth neighbour, which among the frames of a turntable
    none reaches: 0.3 % for pictures in which all varieties but one are recognised.
    """
    varieties = find_varieties(files, real)
    shown = varieties.names[nearest(generated, real)[0]]
    names = sorted(set(varieties.names.tolist()))
    photos = {name: round(float((varieties.names == name).mean()), 4) for name in names}
    pictures = {name: round(float((shown == name).mean()), 4) for name in names}
    missing = tuple(name for name in names if pictures[name] < NEEDED_SHARE * photos[name])
    return Coverage(rule=varieties.rule, needed=NEEDED_SHARE, photos=photos, pictures=pictures, missing=missing)
