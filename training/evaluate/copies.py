"""The check against copying: distances to the nearest training photo."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.data.holdout import Split, find_pools
from training.data.photos import Photos
from training.evaluate.metrics import Features, find_nearest
from training.evaluate.report import Pairs
from training.evaluate.results import SMALL, CopyCheck, NearestDistances, Verdict
from training.model.sampling import SAMPLING_BATCH

CLOSE_QUANTILE = 0.05  # of the other photos; the same share of images is this close by chance
MAX_CLOSE_SHARE = 0.20  # of the images; photos of a group are similar, so 700 photos of 31 groups count as 31
MAX_PAIRS = 12  # in the report
MIN_HELD_OUT = 20  # photos; the median of fewer is too uncertain
FOLDS = 10


def check_copies(
    photos: Photos,
    images: NDArray[np.uint8],
    photo_features: Features,
    image_features: Features,
    split: Split,
    seeds: NDArray[np.int64],
) -> tuple[CopyCheck, Pairs, Pairs | None]:
    """Return the copy check, and the closest images and held-out photos."""
    small = shrink(photos.pixels)
    small_training, training_features = small[split.training], photo_features[split.training]

    def find_closest(pixels: NDArray[np.uint8], names: Sequence[str]) -> Pairs:
        nearest, distances = find_nearest(shrink(pixels), small_training)
        closest = np.argsort(distances, kind="stable")[:MAX_PAIRS]
        neighbours = split.training[nearest[closest]]
        return Pairs(
            images=pixels[closest],
            names=[names[row] for row in closest],
            nearest=photos.pixels[neighbours],
            nearest_names=[photos.files[row] for row in neighbours],
            distances=distances[closest],
            all_distances=distances,
        )

    image_pairs = find_closest(images, [f"seed {seed}" for seed in seeds])
    by_features = find_nearest(image_features, training_features)[1]
    other_by_pixels, other_by_features = (measure_others(x, split, photos.files) for x in (small, photo_features))
    verdicts = (
        assess_distances(image_pairs.all_distances, other_by_pixels),
        assess_distances(by_features, other_by_features, space="features"),
    )
    worse = min(verdicts, key=lambda verdict: ("bad", "good").index(verdict.level))
    check = CopyCheck(
        images_by_pixels=_summarise(image_pairs.all_distances),
        others_by_pixels=_summarise(other_by_pixels),
        images_by_features=_summarise(by_features),
        others_by_features=_summarise(other_by_features),
        verdict=replace(worse, explanation=" ".join(verdict.explanation for verdict in verdicts)),
    )
    names = [photos.files[row] for row in split.held_out]
    return check, image_pairs, find_closest(photos.pixels[split.held_out], names) if names else None


def measure_others(photos: Features, split: Split, files: Sequence[str]) -> NDArray[np.float32]:
    """Return the distances of held-out photos to the nearest training photo.

    If few are held out, all photos take their place: each tenth of every pool is compared with the other tenths.
    """
    if len(split.held_out) >= MIN_HELD_OUT:
        return find_nearest(photos[split.held_out], photos[split.training])[1]
    tenths = [np.array_split(np.array(rows), FOLDS) for rows in find_pools(files).values()]
    folds = [np.concatenate(parts) for parts in zip(*tenths, strict=True)]
    return np.concatenate([find_nearest(photos[fold], np.delete(photos, fold, axis=0))[1] for fold in folds])


def shrink(images: NDArray[np.uint8]) -> Features:
    """Return `images` uint8[N, S, S, 3] averaged to SMALL x SMALL: float32[N, SMALL * SMALL * 3], 0 to 255."""
    n, size, _, _ = images.shape
    factor = size // SMALL
    small = np.empty((n, SMALL, SMALL, 3), np.float32)
    for start in range(0, n, SAMPLING_BATCH):
        batch = images[start : start + SAMPLING_BATCH].reshape(-1, SMALL, factor, SMALL, factor, 3)
        small[start : start + SAMPLING_BATCH] = batch.mean(axis=(2, 4), dtype=np.float32)
    return small.reshape(n, -1)


def _summarise(distances: NDArray[np.float32]) -> NearestDistances:
    closest, median = np.quantile(distances, [0.05, 0.5])
    return NearestDistances(median=round(float(median), 3), closest_5_percent=round(float(closest), 3))


def assess_distances(
    generated: NDArray[np.float32], others: NDArray[np.float32], *, space: str = f"pixels at {SMALL}x{SMALL}"
) -> Verdict:
    """Return whether images are closer to training photos than other photos are.

    Both arrays are distances to the nearest training photo in `space`. A generator that copies has a smaller median
    than other photos, by more than chance explains. One that copies in part has too many images closer than nearly all
    other photos.
    """
    median = float(np.median(generated))
    usual, close = np.quantile(others, [0.5, CLOSE_QUANTILE])
    share = float((generated < close).mean())
    explanation = (
        f"Typical distance to the nearest training photo in {space} (0 is identical): generated {median:.3g}, other "
        f"photos {usual:.3g}; {100 * share:.1f} % of the images are closer than the closest "
        f"{100 * CLOSE_QUANTILE:.0f} % of other photos ({close:.3g})."
    )
    # Both medians are uncertain: three standard deviations of the rank of n distances' median are 1.5 / sqrt(n).
    if median < np.quantile(others, max(0.0, 0.5 - 1.5 * math.sqrt(1 / len(others) + 1 / len(generated)))):
        return Verdict("bad", "The images are closer to the training photos than other photos are.", explanation)
    # Three standard deviations of the quantile are 0.15 with 20 photos, 0.03 with 700.
    deviation = math.sqrt(CLOSE_QUANTILE * (1.0 - CLOSE_QUANTILE) / len(others))
    if share > max(MAX_CLOSE_SHARE, CLOSE_QUANTILE + 3.0 * deviation):
        return Verdict("bad", "Some images look like copies.", explanation)
    return Verdict("good", "No sign of copying.", explanation)
