"""What a network trained on ImageNet sees in a picture: the features that KID and FID compare.

EfficientNet-Lite0 (Liu 2020), because its weights lie in a package: nothing is downloaded. Its figures are not
comparable with those of Inception in papers, only with each other. Who has a file of Inception's weights may use that.
"""

import hashlib
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.data.photos import Photos
from training.errors import TrainingError
from training.model.backbone import build_backbone, load_weights

JUDGES = ("efficientnet-lite0", "efficientnet-lite2", "inception")  # not Lite1, which the discriminator uses
INPUT_SIZES, INCEPTION_INPUT_SIZE = {"lite0": 224, "lite2": 260}, 299  # pixels, what the networks were trained on
BATCH = 32
REDUCED = 64  # pixels, the size at which models of all sizes are compared


@dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into features, and what it is called where figures are quoted."""

    name: str
    network: keras.Model  # float32[BATCH, S, S, 3] -> float32[BATCH, D]
    zero: float  # the value of 0 to 255 that the network takes as 0
    unit: float  # and how far from it 1 is
    reduced_to: int | None = None  # pixels, the size to which images are scaled down first

    def __call__(self, pictures: NDArray[np.uint8], *, progress: bool = False) -> NDArray[np.float32]:
        """Return the features float32[N, D] of `pictures` uint8[N, H, W, 3], sRGB."""
        every_s = 1.0 if sys.stderr.isatty() else 60.0  # a container's log keeps every line
        starts = tqdm(
            range(0, len(pictures), BATCH), "features", unit="batch", mininterval=every_s, disable=not progress
        )
        return np.concatenate([self._batch(pictures[start : start + BATCH]) for start in starts])

    def _batch(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.network.input_shape[1:3]
        images = [Image.fromarray(picture) for picture in pictures]
        if self.reduced_to is not None:
            images = [image.resize((self.reduced_to,) * 2, Image.Resampling.LANCZOS) for image in images]
        enlarged = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
        # Always BATCH rows: every other number would be compiled anew, and rounded in its own way.
        rows = np.zeros((BATCH, *size, 3), np.float32)
        rows[: len(enlarged)] = (
            np.stack([np.asarray(image, np.float32) for image in enlarged]) - self.zero
        ) / self.unit
        features: NDArray[np.float32] = ops.convert_to_numpy(self.network.predict_on_batch(rows))
        return features[: len(enlarged)]


def build_extractor(network: str = "efficientnet-lite0", weights: Path | None = None) -> Extractor:
    """Return the extractor `network`, one of JUDGES; `weights` is inception's HDF5 file.

    Raises:
        TrainingError: the weights are missing, or are not those of that network.
    """
    if network == "inception":
        return _build_inception(weights)
    variant = network.removeprefix("efficientnet-")
    size = INPUT_SIZES[variant]
    backbone = build_backbone(variant, load_weights(variant), taps=(8,), size=size)
    pooled = layers.GlobalAveragePooling2D(dtype="float32")(backbone.outputs[0])
    return Extractor(f"EfficientNet-{variant.title()}", keras.Model(backbone.input, pooled), zero=127.0, unit=128.0)


def build_judges(names: str, weights: Path | None = None, *, image_size: int = REDUCED) -> list[Extractor]:
    """Return the extractors of `names`, separated by commas; the first one's features also check copies and varieties.

    For images of more than REDUCED pixels each judges twice, first at full size: so sizes can be compared.

    Raises:
        TrainingError: a name is unknown or given twice, or its weights are missing.
    """
    networks = names.split(",")
    for network in networks:
        if network not in JUDGES:
            raise TrainingError(f"--features {network!r} is unknown; choose from {', '.join(JUDGES)}.")
        if networks.count(network) > 1:
            raise TrainingError(f"--features names {network} twice; name each judge once.")
    if weights is not None and "inception" not in networks:
        raise TrainingError(f"--weights {weights} is for --features inception; leave it out.")
    judges = [build_extractor(network, weights if network == "inception" else None) for network in networks]
    if image_size > REDUCED:
        judges += [replace(j, name=f"{j.name} at {REDUCED} px", reduced_to=REDUCED) for j in judges]
    return judges


def _build_inception(weights: Path | None) -> Extractor:
    if weights is None:
        raise TrainingError(
            "--features inception needs --weights FILE: the weights of Keras's InceptionV3 without top."
        )
    if not weights.is_file() or not h5py.is_hdf5(weights):
        raise TrainingError(
            f"--weights {weights} is no HDF5 file: give the weights of Keras's InceptionV3 without top."
        )
    inception = keras.applications.InceptionV3(
        include_top=False, weights=None, pooling="avg", input_shape=(INCEPTION_INPUT_SIZE, INCEPTION_INPUT_SIZE, 3)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras warns of layers that stay random
            inception.load_weights(weights)
    except (UserWarning, ValueError, KeyError, OSError, AttributeError) as error:
        raise TrainingError(f"--weights {weights} are not those of Keras's InceptionV3 without top.") from error
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Extractor(f"Inception v3 (Keras), weights {digest[:8]}", inception, zero=127.5, unit=127.5)


def features_of_photos(extract: Extractor, photos: Photos, cache_dir: Path) -> NDArray[np.float32]:
    """Return the features float32[N, D] of all `photos`, read from `cache_dir` where they were kept. Raises OSError."""
    key = hashlib.sha256(f"{photos.sha256} {extract.name}".encode()).hexdigest()[:32]
    kept = cache_dir / f".features-{key}.npy"  # hidden: a cache inside the photos folder is no part of it
    if kept.exists():
        with kept.open("rb") as file:
            found: NDArray[np.float32] = np.load(file)
            return found
    found = extract(photos.pixels, progress=True)
    cache_dir.mkdir(parents=True, exist_ok=True)
    aside = kept.with_name(kept.name + ".part")
    with aside.open("wb") as file:
        np.save(file, found)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(kept)
    return found
