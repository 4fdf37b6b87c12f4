"""The command `evaluate`: compare the images of a model with photos."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import check_output_folder, describe_photos
from training.data.holdout import Split, split_photos
from training.data.photos import Photos, load_photos
from training.errors import TrainingError
from training.evaluate.copies import check_copies
from training.evaluate.features import build_extractors, features_of_photos
from training.evaluate.generator import GeneratorUnderTest, load_generator_under_test
from training.evaluate.metrics import Features, frechet_distance, kernel_distance
from training.evaluate.report import Interpolation, Pairs, Report, write_report
from training.evaluate.results import Distances, Evaluation, FeatureDistances, References
from training.evaluate.varieties import Varieties, find_varieties, measure_coverage
from training.model.latents import sample_latents, slerp
from training.records import read_curves, write_record

FIRST_SEED = 10_000  # beyond the seeds of `fit`, which chooses the best checkpoint by its own
MIN_COUNT = 50  # with fewer, KID's deviation exceeds the difference between good and bad models
MEMORY_LIMIT_BYTES = 2 * 2**30  # for decoded photos; beyond it they stay on disk
NOISE_IMAGES = 64  # to compare with; KID does not depend on their number
GRID_SEEDS = 100
INTERPOLATED_SEEDS, INTERPOLATION_STEPS = ((0, 1), (2, 3), (4, 5), (6, 7)), 10  # not selected, like the grid's


@dataclass(frozen=True)
class FeatureSet:
    """The features of all photos and of the images, by one network."""

    network: str
    photos: Features
    images: Features


@dataclass(frozen=True)
class Subject:
    """A model's images of `seeds`, and the photos to compare them with."""

    folder: Path  # a run or a version
    generator: GeneratorUnderTest
    photos: Photos
    split: Split | None  # None if the photos are not those of the training
    remarks: tuple[str, ...]
    seeds: NDArray[np.int64]
    images: NDArray[np.uint8]  # [N, S, S, 3], sRGB


def evaluate(
    model: Path,
    photos_folder: Path,
    *,
    out: Path,
    count: int = 1900,
    checkpoint: str = "best",
    networks: str = "efficientnet-lite0",
    weights: Path | None = None,
    rights: Mapping[str, str] | None = None,
) -> Evaluation:
    """Compare `count` images of `model` with photos; write the results to `out`.

    `model` is a run or version folder. `networks` are names of features.NETWORKS, separated by commas; the features of
    the first also check copies and varieties. Photos are cropped and scaled as for training, so their sharpness is
    comparable. If there are fewer photos than `count`, there are also fewer images, because FID depends on the number.
    `out` receives evaluation.json, report.html and a cache of features. `weights` is a file for inception. `rights` are
    attribution and licence for the report, instead of those on the model card.

    Raises:
        TrainingError: `model` is neither, `out` is a file, photos are fewer than MIN_COUNT, or a network is missing.
    """
    check_output_folder(out)
    generator = load_generator_under_test(model, checkpoint)
    extractors = build_extractors(networks, weights, image_size=generator.config.image_size)
    photos = load_photos(
        photos_folder, generator.config.image_size, cache_dir=out / "photos", memory_limit_bytes=MEMORY_LIMIT_BYTES
    )
    count = min(count, len(photos.pixels))
    if count < MIN_COUNT:
        raise TrainingError(f"{count} images and photos are too few to compare; provide at least {MIN_COUNT}.")
    seeds = np.arange(FIRST_SEED, FIRST_SEED + count)
    images = generator.generate_images(seeds)
    subject = Subject(model, generator, photos, *recover_split(generator, photos), seeds, images)
    feature_sets = [
        FeatureSet(
            extract.name, features_of_photos(extract, photos, out / "photos"), extract(images, progress="images")
        )
        for extract in extractors
    ]
    noise = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, *images.shape[1:]), np.uint8)
    report = summarise(subject, feature_sets, extractors[0](noise), photos_folder.resolve().name, rights or {})
    write_record(out / "evaluation.json", asdict(report.evaluation))
    write_report(out / "report.html", report)
    return report.evaluation


def summarise(
    subject: Subject,
    feature_sets: Sequence[FeatureSet],
    noise: Features,
    photos_folder: str,
    rights: Mapping[str, str],
) -> Report:
    """Return the report, with the evaluation in it.

    `noise` are the features of images of noise, by the network of the first feature set.
    """
    generator, photos, split = subject.generator, subject.photos, subject.split
    first = feature_sets[0]
    copies = image_pairs = held_out_pairs = None
    if split:
        copies, image_pairs, held_out_pairs = check_copies(
            photos, subject.images, first.photos, first.images, split, subject.seeds
        )
    varieties = find_varieties(photos.files, first.photos)
    distances, *other_distances = [measure_distances(features, split) for features in feature_sets]
    evaluation = Evaluation(
        model=generator.name,
        batch=generator.batch,
        features=first.network,
        photos=f"{photos_folder}, {photos.summary.used:,} photos",
        seeds=f"{subject.seeds[0]} to {subject.seeds[-1]}",
        against_all=distances.against_all,
        against_held_out=distances.against_held_out,
        other_features=tuple(other_distances),
        copies=copies,
        coverage=measure_coverage(varieties, first.photos, first.images),
        references=measure_references(varieties, first.photos, noise),
        remarks=subject.remarks,
    )
    return illustrate(subject, evaluation, varieties, (image_pairs, held_out_pairs), rights)


def illustrate(
    subject: Subject,
    evaluation: Evaluation,
    varieties: Varieties,
    pairs: tuple[Pairs | None, Pairs | None],
    rights: Mapping[str, str],
) -> Report:
    """Return the report of `evaluation`.

    `pairs` are generated images and held-out photos beside their nearest photos.
    """
    generator, photos, split = subject.generator, subject.photos, subject.split
    record = generator.photos_record
    return Report(
        evaluation=evaluation,
        photos=record,
        rights=quote_model_card(subject.folder / "model_card.md") | dict(rights),
        held_out_photos=split.describe() if split else f"{record.held_out:,} photos.",
        grid=generator.generate_images(np.arange(GRID_SEEDS)),
        missing={
            name: photos.pixels[np.flatnonzero(varieties.names == name)[:6]] for name in evaluation.coverage.missing
        },
        generated=pairs[0],
        held_out=pairs[1],
        interpolations=[interpolate(generator, start, end) for start, end in INTERPOLATED_SEEDS],
        losses=read_curves(subject.folder / "history.csv"),
        kid=read_curves(subject.folder / "kid.csv"),
        config=asdict(generator.config),
    )


def recover_split(generator: GeneratorUnderTest, photos: Photos) -> tuple[Split | None, tuple[str, ...]]:
    """Return the split of the training, and remarks.

    The split is None if `photos` are not those of the training.
    """
    split = split_photos(photos.files, generator.config.holdout_fraction)
    if not generator.photos_record.has_photos_of(describe_photos(photos, split)):
        return None, ("The photos differ from those of the training, so copies cannot be checked.",)
    if split.groups and len(split.held_out) < MIN_COUNT:
        return split, (
            f"{len(split.held_out)} held-out photos are too few for a KID; at least {MIN_COUNT} are needed.",
        )
    return split, ()


def measure_distances(features: FeatureSet, split: Split | None) -> FeatureDistances:
    """Return the distances to all photos and to held-out photos.

    For all photos, it takes a random sample of as many as there are images.
    """
    photos, images = features.photos, features.images
    sample = np.sort(np.random.default_rng(0).choice(len(photos), len(images), replace=False))
    has_held_out = split is not None and len(split.held_out) >= MIN_COUNT
    return FeatureDistances(
        features=features.network,
        against_all=_measure(photos[sample], images),
        against_held_out=_measure(photos[split.held_out], images) if split is not None and has_held_out else None,
    )


def _measure(photos: Features, images: Features) -> Distances:
    """Return KID, and FID if both sets have equal sizes."""
    distance, deviation = kernel_distance(photos, images)
    return Distances(
        images=len(images),
        photos=len(photos),
        kid_x1000=round(1000 * distance, 2),
        kid_x1000_std=round(1000 * deviation, 2),
        fid=round(frechet_distance(photos, images), 2) if len(photos) == len(images) else None,
    )


def measure_references(varieties: Varieties, photos: Features, noise: Features) -> References:
    """Return the results of a perfect copy of photos, and of `noise`."""
    first, second = np.array_split(np.random.default_rng(0).permutation(photos), 2)
    return References(
        copy_kid_x1000=round(1000 * kernel_distance(first, second)[0], 2),
        noise_kid_x1000=round(1000 * kernel_distance(photos, noise)[0], 2),
        noise_varieties=measure_coverage(varieties, photos, noise).covered,
    )


def interpolate(generator: GeneratorUnderTest, first: int, last: int) -> Interpolation:
    """Return the images interpolated between two seeds."""
    start, end = sample_latents(np.array([first, last]), generator.config.latent_dim)
    return Interpolation(first, last, generator.images_from_latents(slerp(start, end, INTERPOLATION_STEPS)))


def quote_model_card(model_card: Path) -> dict[str, str]:
    """Return attribution and licence of a model card, nothing for a run."""
    lines = model_card.read_text(encoding="utf-8").splitlines() if model_card.is_file() else []
    fields = (line.removeprefix("- ").partition(": ") for line in lines)
    return {label: text for label, _, text in fields if label in ("Attribution", "Licence of these weights")}
