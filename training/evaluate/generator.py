"""The generator under test: that of a run, or an exported version."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.data.dataset import PhotosRecord
from training.errors import TrainingError
from training.evaluate.plots import Curves
from training.model.checkpoints import load_generator
from training.model.sampling import SAMPLING_BATCH, images_from_latents
from training.records import read_curves, read_record


@dataclass(frozen=True)
class GeneratorUnderTest:
    """Functions from seeds to latents to images, and records of the training."""

    name: str
    batch: int | None
    sample_latents: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    images_from_latents: Callable[[NDArray[np.float32]], NDArray[np.uint8]]
    config: TrainingConfig
    photos_record: PhotosRecord
    losses: Curves = field(default_factory=dict)  # empty for a version
    kid: Curves = field(default_factory=dict)
    selector: str = ""  # digest

    def generate_images(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images uint8[N, S, S, 3] of `seeds` int64[N]."""
        return self.images_from_latents(self.sample_latents(seeds))


def is_version(model: Path) -> bool:
    """Return whether `model` is a version folder and not a run folder."""
    return (model / "saved_model.pb").is_file()


def load_generator_under_test(model: Path, checkpoint: str) -> GeneratorUnderTest:
    """Return the generator of a run folder or of a version folder. Raises TrainingError if `model` is neither."""
    if not is_version(model):
        if not (model / "config.json").is_file():
            raise TrainingError(
                f"{model} has neither saved_model.pb nor config.json; name a version of a model, such as "
                "models/apple/5, or the --out folder of a `fit` that has saved a checkpoint."
            )
        trained = load_generator(model, checkpoint)
        return GeneratorUnderTest(
            name=model.resolve().name,
            batch=trained.batch,
            sample_latents=trained.sample_latents,
            images_from_latents=lambda latents: images_from_latents(trained.network, latents),
            config=trained.config,
            photos_record=read_record(model / "photos.json", PhotosRecord),
            losses=read_curves(model / "history.csv"),
            kid=read_curves(model / "kid.csv"),
            selector=trained.selector.digest if trained.selector else "",
        )
    import tensorflow as tf

    try:
        signatures = tf.saved_model.load(str(model)).signatures
        sample, render = signatures["sample"], signatures["serving_default"]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise TrainingError(f"{model} is damaged, or `export` did not write it; name another version.") from error

    def run_signature(latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        batches = (latents[i : i + SAMPLING_BATCH] for i in range(0, len(latents), SAMPLING_BATCH))
        return np.concatenate([render(latents=tf.constant(batch))["images"].numpy() for batch in batches])

    photos_record = read_record(model / "photos.json", PhotosRecord)
    return GeneratorUnderTest(
        name=f"{model.resolve().parent.name}, version {model.resolve().name}",
        batch=photos_record.batch,
        sample_latents=lambda seeds: sample(seeds=tf.constant(seeds))["latents"].numpy(),
        images_from_latents=run_signature,
        config=read_record(model / "config.json", TrainingConfig),  # older versions lack newer settings
        photos_record=photos_record,
    )
