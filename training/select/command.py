"""The command `select`: train a selector for a run, so that fewer seeds give broken images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.dataset import PhotosRecord, describe_photos, load_run_photos
from training.data.holdout import split_photos
from training.errors import TrainingError
from training.evaluate.metrics import kernel_distance
from training.model.checkpoints import TrainedGenerator, load_generator
from training.model.latents import sample_latents
from training.model.sampling import images_from_latents
from training.model.selector import CANDIDATES, save_selector
from training.records import read_record
from training.select.anomalies import ImageDistances, PhotoDistance, load_distances, save_distances
from training.select.objective import train_selector

FIRST_SEED = 2**40  # of the measured images, far from the seeds of evaluations
CHUNK = 2048  # images; an interrupted command loses less than one chunk
MAX_PHOTOS = 10_000  # each takes 68 kB of memory
TEST_FRACTION = 0.2  # of the chunks: they only test the selector
OUTLIERS = 0.1  # share of all images, those furthest from the photos


@dataclass(frozen=True)
class Comparison:
    """Images of the test seeds, without the selector and with it."""

    outliers: tuple[float, float]  # share of the images
    kid_x1000: tuple[float, float]  # against the training photos, by EfficientNet-Lite1


def select(run: Path, photos_folder: Path, *, images: int, weight: float, checkpoint: str = "best") -> Comparison:
    """Write `run`/selector.npz; return what it changes.

    `images` are measured, and a fifth of them only tests; `weight` is that of `train_selector`. `run`/selection keeps
    what is measured, for another attempt or another weight. Raises TrainingError if `run` is not a run folder,
    `photos_folder` has other photos than its training, a number is out of range, or the training diverges.
    """
    if images < 2 * CHUNK or images % CHUNK:
        raise TrainingError(f"--images is {images}; set it to a multiple of {CHUNK}, at least {2 * CHUNK}.")
    if not 0.0 <= weight < math.inf:
        raise TrainingError(f"--weight is {weight}; set it to a number from 0 up.")
    generator = load_generator(run, checkpoint, with_selector=False)
    photos = load_run_photos(photos_folder, run, generator.config)
    split = split_photos(photos.files, generator.config.holdout_fraction)
    if not read_record(run / "photos.json", PhotosRecord).has_photos_of(describe_photos(photos, split)):
        raise TrainingError(f"{photos_folder} has other photos than the training of {run}; set --photos to its folder.")
    rows = np.random.default_rng(0).permutation(split.training)[:MAX_PHOTOS]
    measure = PhotoDistance(photos.pixels[np.sort(rows)])
    latent_dim, chunks = generator.config.latent_dim, images // CHUNK
    seeds = np.arange(FIRST_SEED, FIRST_SEED + chunks * CHUNK // CANDIDATES)
    latents = sample_latents(seeds, CANDIDATES * latent_dim).reshape(chunks, CHUNK, latent_dim)
    folder, key = run / "selection", f"generator {generator.digest}, photos {photos.sha256}"
    measured = [*_measure_chunks(generator, latents, measure, folder, key)]
    distances = np.concatenate([chunk.distances for chunk in measured])
    anomaly_scores = ((distances - distances.mean(axis=0)) / distances.std(axis=0).clip(1e-6)).mean(axis=1)
    features = np.concatenate([chunk.features for chunk in measured])
    training = CHUNK * (chunks - math.ceil(TEST_FRACTION * chunks))
    selector = train_selector(
        latents.reshape(-1, latent_dim)[:training],
        features[:training],
        anomaly_scores[:training],
        measure.photo_features,
        weight=weight,
    )
    save_selector(selector, run / "selector.npz", generator=generator.digest)
    is_outlier = anomaly_scores > np.quantile(anomaly_scores, 1 - OUTLIERS)
    test_rows = np.arange(training, len(features)).reshape(-1, CANDIDATES)
    chosen = selector.choose(latents.reshape(-1, latent_dim)[test_rows])
    first, best = test_rows[:, 0], test_rows[np.arange(len(chosen)), chosen]
    kids = [1000 * kernel_distance(measure.photo_features, features[rows])[0] for rows in (first, best)]
    return Comparison((is_outlier[first].mean(), is_outlier[best].mean()), (kids[0], kids[1]))


def _measure_chunks(
    generator: TrainedGenerator, latents: NDArray[np.float32], measure: PhotoDistance, folder: Path, key: str
) -> Iterator[ImageDistances]:
    """Yield the measurements of each chunk of `latents` [C, CHUNK, D], from `folder` where it has them."""
    folder.mkdir(exist_ok=True)
    for number, chunk in enumerate(tqdm(latents, f"select: measuring {CHUNK:,} images each", unit="chunk")):
        path = folder / f"{number:04d}.npz"
        measurements = load_distances(path, key)
        if measurements is None:
            measurements = measure(images_from_latents(generator.network, chunk))
            save_distances(measurements, path, key)
        yield measurements
