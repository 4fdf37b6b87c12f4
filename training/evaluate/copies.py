"""The check against copying: distances to the nearest training photo."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.holdout import Split
from training.data.photos import Photos
from training.evaluate.metrics import Features, find_nearest
from training.evaluate.report import Pairs
from training.evaluate.results import SMALL, CopyCheck, NearestDistances, Verdict
from training.model.sampling import SAMPLING_BATCH

CLOSE_QUANTILE = 0.05  # of the held-out photos; the same share of images is this close by chance
MAX_CLOSE_SHARE = 0.20  # of the images; photos of a group are similar, so 700 photos of 31 groups count as 31
MAX_PAIRS = 12  # in the report


def check_copies(
    photos: Photos,
    images: NDArray[np.uint8],
    photo_features: Features,
    image_features: Features,
    split: Split,
    seeds: NDArray[np.int64],
) -> tuple[CopyCheck, Pairs, Pairs | None]:
    """Return the copy check, and the closest images and held-out photos with their nearest training photos."""
    small_training, training_features = shrink(photos.pixels)[split.training], photo_features[split.training]

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
    held_out_pairs = held_out_by_pixels = held_out_by_features = None
    if len(split.held_out):
        held_out_pairs = find_closest(photos.pixels[split.held_out], [photos.files[row] for row in split.held_out])
        held_out_by_pixels = held_out_pairs.all_distances
        held_out_by_features = find_nearest(photo_features[split.held_out], training_features)[1]
    check = CopyCheck(
        images_by_pixels=_summarise(image_pairs.all_distances),
        held_out_by_pixels=_summarise(held_out_by_pixels) if held_out_by_pixels is not None else None,
        images_by_features=_summarise(by_features),
        held_out_by_features=_summarise(held_out_by_features) if held_out_by_features is not None else None,
        verdict=combine_verdicts(
            assess_distances(image_pairs.all_distances, held_out_by_pixels),
            assess_distances(by_features, held_out_by_features, space="features"),
        ),
    )
    return check, image_pairs, held_out_pairs


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
    generated: NDArray[np.float32], held_out: NDArray[np.float32] | None, *, space: str = f"pixels at {SMALL}x{SMALL}"
) -> Verdict:
    """Return whether images are closer to training photos than held-out photos are.

    Both arrays are distances to the nearest training photo in `space`. A generator that copies has a smaller median
    than held-out photos. One that copies in part has too many images closer than nearly all held-out photos.
    """
    median = float(np.median(generated))
    typical = f"Typical distance to the nearest training photo in {space} (0 is identical): generated {median:.3g}"
    if held_out is None:
        return Verdict("unknown", "Not checked for copies.", f"{typical}; no photo was held out to compare with.")
    usual, close = np.quantile(held_out, [0.5, CLOSE_QUANTILE])
    share = float((generated < close).mean())
    explanation = (
        f"{typical}, unseen photos {usual:.3g}; {100 * share:.1f} % of the images are closer than the closest "
        f"{100 * CLOSE_QUANTILE:.0f} % of unseen photos ({close:.3g})."
    )
    if median < usual:
        # The median of n unseen photos is uncertain, too: three standard deviations of its rank are 1.5 / sqrt(n).
        if median >= np.quantile(held_out, max(0.0, 0.5 - 1.5 / math.sqrt(len(held_out)))):
            headline = (
                f"The images may be copies: chance may explain that {len(held_out)} unseen photos are farther away."
            )
            return Verdict("unknown", headline, explanation)
        return Verdict("bad", "The images are closer to the training photos than unseen photos are.", explanation)
    # With few photos the quantile is uncertain: three standard deviations are 0.32 with 6 photos, 0.20 with 19.
    deviation = math.sqrt(CLOSE_QUANTILE * (1.0 - CLOSE_QUANTILE) / len(held_out))
    if share > max(MAX_CLOSE_SHARE, CLOSE_QUANTILE + 3.0 * deviation):
        return Verdict("bad", "Some images look like copies.", explanation)
    return Verdict("good", "No sign of copying.", explanation)


def combine_verdicts(first: Verdict, second: Verdict) -> Verdict:
    """Return the worse of two verdicts with the explanations of both."""
    order = ("bad", "unknown", "good")
    worse = min(first, second, key=lambda verdict: order.index(verdict.level))
    return Verdict(worse.level, worse.headline, f"{first.explanation} {second.explanation}")
