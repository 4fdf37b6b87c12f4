"""The command `evaluate`: compare the images of a model with photos."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import check_output_folder, describe_photos
from training.data.holdout import Split, split_photos
from training.data.photos import Photos, load_photos, printable
from training.errors import TrainingError
from training.evaluate.copies import check_copies
from training.evaluate.features import build_extractors, features_of_photos
from training.evaluate.generator import GeneratorUnderTest, load_generator_under_test
from training.evaluate.metrics import Features, frechet_distance, kernel_distance
from training.evaluate.report import Report, write_report
from training.evaluate.results import Distances, Evaluation, FeatureDistances, References
from training.evaluate.varieties import Varieties, find_varieties, measure_coverage
from training.model.latents import slerp
from training.records import write_record

FIRST_SEED = 10_000  # beyond the seeds of `fit` (`evaluate_count`), which chooses the best checkpoint by its own
MIN_COUNT = 50  # with fewer, KID's deviation exceeds the difference between good and bad models
MEMORY_LIMIT_BYTES = 2 * 2**30  # for decoded photos; beyond it they stay on disk
NOISE_IMAGES = 64  # to compare with; KID does not depend on their number
GRID_SEEDS = 100
INTERPOLATED_SEEDS, INTERPOLATION_STEPS = ((0, 1), (2, 3), (4, 5), (6, 7)), 10  # not selected, like the grid's


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
    the first also check copies and varieties. If there are fewer photos than `count`, there are also fewer images,
    because FID depends on the number. `weights` is a file for inception. `rights` are attribution and licence for the
    report, instead of those on the model card. Raises TrainingError if `model` is neither, `out` is a file, photos are
    fewer than MIN_COUNT, or a network is missing.
    """
    check_output_folder(out)
    generator = load_generator_under_test(model, checkpoint)
    image_size = generator.config.image_size
    extractors = build_extractors(networks, weights, image_size=image_size)
    cache_dir = out / "photos"
    photos = load_photos(
        photos_folder,
        image_size,
        cache_dir=cache_dir,
        memory_limit_bytes=MEMORY_LIMIT_BYTES,
        correct_black_level=generator.config.correct_black_level,
    )
    count = min(count, len(photos.pixels))
    if count < MIN_COUNT:
        raise TrainingError(f"{count} images and photos are too few to compare; provide at least {MIN_COUNT}.")
    seeds = np.arange(FIRST_SEED, FIRST_SEED + count)
    images = generator.generate_images(seeds)
    features = [(e.name, features_of_photos(e, photos, cache_dir), e(images, progress="images")) for e in extractors]
    noise = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, *images.shape[1:]), np.uint8)
    name = printable(photos_folder.resolve().name)
    rights = quote_model_card(model / "model_card.md") | dict(rights or {})
    report = compare(generator, photos, name, images, seeds, features, extractors[0](noise), rights)
    write_record(out / "evaluation.json", asdict(report.evaluation))
    write_report(out / "report.html", report)
    return report.evaluation


def compare(
    generator: GeneratorUnderTest,
    photos: Photos,
    photos_name: str,
    images: NDArray[np.uint8],
    seeds: NDArray[np.int64],
    features: Sequence[tuple[str, Features, Features]],
    noise: Features,
    rights: Mapping[str, str],
) -> Report:
    """Return the report on `images`; `features` are network, photos and images."""
    split, remarks = recover_split(generator, photos)
    photo_features, image_features = features[0][1:]
    copies = generated = held_out = None
    if split:
        copies, generated, held_out = check_copies(photos, images, photo_features, image_features, split, seeds)
    varieties = find_varieties(photos.files, photo_features)
    coverage = measure_coverage(varieties, photo_features, image_features)
    distances, *other_distances = [measure_distances(*sets, split) for sets in features]
    evaluation = Evaluation(
        model=generator.name,
        batch=generator.batch,
        features=distances.features,
        photos=f"{photos_name}, {photos.summary.used:,} photos",
        seeds=f"{seeds[0]} to {seeds[-1]}",
        against_all=distances.against_all,
        against_held_out=distances.against_held_out,
        other_features=tuple(other_distances),
        copies=copies,
        coverage=coverage,
        references=measure_references(varieties, photo_features, noise),
        remarks=remarks,
        selector=generator.selector,
    )
    return Report(
        evaluation=evaluation,
        photos=generator.photos_record,
        rights=rights,
        held_out_photos=split.describe() if split else f"{generator.photos_record.held_out:,} photos.",
        grid=generator.generate_images(np.arange(GRID_SEEDS)),
        missing={name: photos.pixels[np.flatnonzero(varieties.names == name)[:6]] for name in coverage.missing},
        generated=generated,
        held_out=held_out,
        interpolations=interpolate(generator),
        losses=generator.losses,
        kid=generator.kid,
        config=asdict(generator.config),
    )


def recover_split(generator: GeneratorUnderTest, photos: Photos) -> tuple[Split | None, tuple[str, ...]]:
    """Return the split of the training, and remarks. The split is None if `photos` are not those of the training."""
    split = split_photos(photos.files, generator.config.holdout_fraction)
    if not generator.photos_record.has_photos_of(describe_photos(photos, split)):
        return None, ("The photos differ from those of the training, so copies cannot be checked.",)
    if split.groups and len(split.held_out) < MIN_COUNT:
        return split, (f"{len(split.held_out)} held-out photos are too few for a KID; provide at least {MIN_COUNT}.",)
    return split, ()


def measure_distances(network: str, photos: Features, images: Features, split: Split | None) -> FeatureDistances:
    """Return distances to equally many random photos, and to held-out photos."""
    sample = np.sort(np.random.default_rng(0).choice(len(photos), len(images), replace=False))
    against_held_out = _measure(photos[split.held_out], images) if split and len(split.held_out) >= MIN_COUNT else None
    return FeatureDistances(network, _measure(photos[sample], images), against_held_out)


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


def interpolate(generator: GeneratorUnderTest) -> dict[str, NDArray[np.uint8]]:
    """Return images uint8[K, S, S, 3] between paired seeds, by name."""
    images = {}
    for first, last in INTERPOLATED_SEEDS:
        start, end = generator.sample_latents(np.array([first, last]))
        images[f"seed {first} to seed {last}"] = generator.images_from_latents(slerp(start, end, INTERPOLATION_STEPS))
    return images


def quote_model_card(model_card: Path) -> dict[str, str]:
    """Return attribution and licence of a model card, nothing for a run."""
    lines = model_card.read_text("utf-8", "replace").splitlines() if model_card.is_file() else []
    fields = (line.removeprefix("- ").partition(": ") for line in lines)
    return {label: text for label, _, text in fields if label in ("Attribution", "Licence of these weights")}
