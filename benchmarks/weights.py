"""The Keras generator of an exported version, and a smaller model."""

from dataclasses import asdict, replace
from pathlib import Path

import keras

from training.config import TrainingConfig
from training.model.exported import load_exported
from training.model.networks import build_generator
from training.records import read_record, write_record

SMALL = 64  # px


def newest_version(model: Path) -> Path:
    """Return the folder of the newest version in the model folder `model`."""
    return max((p for p in model.iterdir() if p.name.isdecimal()), key=lambda folder: int(folder.name))


def version_name(model: Path) -> str:
    """Return names of the model and its newest version, as "apple/1"."""
    return f"{model.resolve().name}/{newest_version(model).name}"


def models_by_size(bundled: Path, scratch: Path, *, small: bool = True) -> dict[str, Path]:
    """Return `bundled` and, if `small`, a 64 px model, by image size.

    The 64 px model in `scratch` has the bundled weights, except for a random last layer. Its PNG files are 1.2 times as
    large as resized images of the bundled model, and take as long to encode.
    """
    version = newest_version(bundled)
    config = read_record(version / "config.json", TrainingConfig)
    models = {str(config.image_size): bundled}
    if not small:
        return models
    from training.export.command import save_servable  # not in the Flask peer: it takes 590 MB
    from training.export.signatures import Servable
    from training.model.checkpoints import TrainedGenerator

    config = replace(config, image_size=SMALL)
    keras.utils.set_random_seed(0)
    network = build_generator(config.latent_dim, config.generator_channels)
    for layer, original in zip(network.layers[:-2], keras_generator(version).layers, strict=False):
        layer.set_weights(original.get_weights())
    folder = scratch / f"{SMALL}" / bundled.name
    save_servable(
        Servable(TrainedGenerator(network, config, 0), sequential=False), folder / "1", model_name=bundled.name
    )
    write_record(folder / "1" / "config.json", asdict(config))
    return models | {str(SMALL): folder}


def keras_generator(version: Path) -> keras.Model:
    """Return a Keras generator with the images of `version`, up to 1/255."""
    return load_exported(version, read_record(version / "config.json", TrainingConfig))
