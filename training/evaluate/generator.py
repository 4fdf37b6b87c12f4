"""A generator to be judged: that of a run, or an exported version, whose signatures are all that is asked of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.model.checkpoints import load_generator
from training.model.latents import sample_latents
from training.model.sampling import SAMPLING_BATCH, images_from_latents
from training.records import read_record


@dataclass(frozen=True)
class Painter:
    """What paints, and what is known of its training."""

    name: str
    batch: int | None
    image_size: int
    latent_dim: int
    paint_latents: Callable[[NDArray[np.float32]], NDArray[np.uint8]]
    config: dict[str, Any]  # config.json; empty if it is not known
    photos: dict[str, Any] | None  # photos.json of its run; None if all photos count as seen

    def paint(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures uint8[N, S, S, 3] of `seeds`."""
        return self.paint_latents(sample_latents(seeds, self.latent_dim))


def is_version(model: Path) -> bool:
    """Return whether `model` is a version folder, which never changes, and not a run folder."""
    return (model / "saved_model.pb").is_file()


def open_painter(model: Path, checkpoint: str) -> Painter:
    """Return the generator of a run folder, or of an exported version. Raises TrainingError if there is none."""
    if is_version(model):
        return _open_version(model)
    if not (model / "config.json").is_file():
        raise TrainingError(
            f"{model} has neither saved_model.pb nor config.json: name a version of a model, such as models/apple/1, "
            "or the --out folder of a `fit` that has saved a checkpoint."
        )
    trained = load_generator(model, checkpoint)
    return Painter(
        name=model.resolve().name,
        batch=trained.batch,
        image_size=trained.config.image_size,
        latent_dim=trained.config.latent_dim,
        paint_latents=lambda latents: images_from_latents(trained.network, latents),
        config=asdict(trained.config),
        photos=read_record(model / "photos.json"),
    )


def _open_version(version: Path) -> Painter:
    import tensorflow as tf

    try:
        images_of = tf.saved_model.load(str(version)).signatures["serving_default"]
        latent_dim = images_of.structured_input_signature[1]["latents"].shape[1]
        image_size = images_of.structured_outputs["images"].shape[1]
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise TrainingError(f"{version} has no signature `serving_default`, latents to images: {error}.") from error

    def paint_parts(latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        parts = (latents[i : i + SAMPLING_BATCH] for i in range(0, len(latents), SAMPLING_BATCH))
        return np.concatenate([images_of(latents=tf.constant(part))["images"].numpy() for part in parts])

    config, record = version / "config.json", version / "photos.json"
    known = config.is_file() and record.is_file()  # version 1 of the apples came before they were kept
    photos = read_record(record) if known else None
    return Painter(
        name=f"{version.resolve().parent.name}, version {version.resolve().name}",
        batch=int(photos["batch"]) if photos else None,
        image_size=image_size,
        latent_dim=latent_dim,
        paint_latents=paint_parts,
        config=read_record(config) if known else {},
        photos=photos,
    )
