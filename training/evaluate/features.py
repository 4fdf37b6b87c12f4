"""Image features from networks trained on ImageNet, for KID and FID.

The default is EfficientNet-Lite0 (Liu 2020), because a package contains its weights. Inception needs a file of weights.
Figures of one network are comparable only with each other.
"""

import hashlib
import warnings
from collections.abc import Iterable
from contextlib import suppress
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
from training.records import UNREADABLE, open_atomically
from training.terminal import progress_interval_s

# Input sizes in pixels, as in the networks' training. Without Lite1, which the discriminator uses.
NETWORKS = {"efficientnet-lite0": 224, "efficientnet-lite2": 260, "inception": 299}
BATCH = 32
COMMON_SIZE = 64  # pixels; at this size, models of all sizes are comparable


@dataclass(frozen=True)
class Extractor:
    """A network from images to features, and its name in reports."""

    name: str
    network: keras.Model  # float32[BATCH, S, S, 3] -> float32[BATCH, D]
    offset: float = 127.0  # the network was trained on (pixels - offset) / scale
    scale: float = 128.0
    downscale_to: int | None = None  # pixels; images are first scaled down to this size

    def __call__(self, images: NDArray[np.uint8], *, progress: str = "") -> NDArray[np.float32]:
        """Return float32[N, D] of `images` uint8[N, H, W, 3], sRGB. `progress` names them on a progress line."""
        starts: Iterable[int] = range(0, len(images), BATCH)
        if progress:  # an argument `disable` would override TQDM_DISABLE
            label = f"features of {len(images):,} {progress}"
            starts = tqdm(starts, label, unit="batch", mininterval=progress_interval_s())
        return np.concatenate([self._extract_batch(images[start : start + BATCH]) for start in starts])

    def _extract_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.network.input_shape[1:3]
        images = [Image.fromarray(image) for image in pixels]
        if self.downscale_to is not None:
            images = [image.resize((self.downscale_to,) * 2, Image.Resampling.LANCZOS) for image in images]
        resized = [np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32) for image in images]
        # Always BATCH rows: another number would compile again, and round differently.
        rows = np.zeros((BATCH, *size, 3), np.float32)
        rows[: len(resized)] = (np.stack(resized) - self.offset) / self.scale
        return np.asarray(ops.convert_to_numpy(self.network.predict_on_batch(rows))[: len(resized)])


def build_extractor(network: str = "efficientnet-lite0", weights: Path | None = None) -> Extractor:
    """Return the extractor of `network`, one of NETWORKS. Raises TrainingError if its weights do not fit."""
    if network == "inception":
        return _build_inception(weights)
    variant = network.removeprefix("efficientnet-")
    backbone = build_backbone(variant, load_weights(variant), taps=(8,), size=NETWORKS[network])
    pooled = layers.GlobalAveragePooling2D(dtype="float32")(backbone.outputs[0])
    return Extractor(f"EfficientNet-{variant.title()}", keras.Model(backbone.input, pooled))


def _build_inception(weights: Path | None) -> Extractor:
    needed = "set --weights to the HDF5 file of Keras's InceptionV3 without top"
    if weights is None:
        raise TrainingError(f"--features inception has no weights; {needed}.")
    try:
        with warnings.catch_warnings(), h5py.File(weights):  # h5py raises OSError for other files
            inception = keras.applications.InceptionV3(
                include_top=False, weights=None, pooling="avg", input_shape=(NETWORKS["inception"],) * 2 + (3,)
            )
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers without weights
            inception.load_weights(weights)
    except (UserWarning, ValueError, KeyError, OSError, AttributeError) as error:
        raise TrainingError(f"--weights {weights} does not fit; {needed}.") from error
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Extractor(f"Inception v3 (Keras), weights {digest[:8]}", inception, offset=127.5, scale=127.5)


def build_extractors(names: str, weights: Path | None = None, *, image_size: int = COMMON_SIZE) -> list[Extractor]:
    """Return the extractors of `names`, separated by commas.

    For images larger than COMMON_SIZE, each network also gives an extractor that scales images down to COMMON_SIZE.
    Raises TrainingError if a name is unknown or repeated, or its weights are missing.
    """
    networks = names.split(",")
    for network in networks:
        if network not in NETWORKS:
            raise TrainingError(f"--features {network!r} is unknown; choose from {', '.join(NETWORKS)}.")
        if networks.count(network) > 1:
            raise TrainingError(f"--features names {network} twice; name each network once.")
    if weights is not None and "inception" not in networks:
        raise TrainingError(f"--weights {weights} is for --features inception; leave it out.")
    extractors = [build_extractor(network, weights) for network in networks]
    if image_size > COMMON_SIZE:
        extractors += [replace(e, name=f"{e.name} at {COMMON_SIZE} px", downscale_to=COMMON_SIZE) for e in extractors]
    return extractors


def features_of_photos(extract: Extractor, photos: Photos, cache_dir: Path) -> NDArray[np.float32]:
    """Return the features float32[N, D] of all `photos`, cached in `cache_dir`. Raises OSError."""
    key = hashlib.sha256(f"{photos.sha256} {extract.name}".encode()).hexdigest()[:32]
    cached = cache_dir / f".features-{key}.npy"  # hidden, so a cache inside the photo folder is ignored there
    with suppress(*UNREADABLE):
        features: NDArray[np.float32] = np.asarray(np.load(cached), np.float32)
        if features.shape == (len(photos.pixels), extract.network.output_shape[1]):
            return features
    features = extract(photos.pixels, progress="photos")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open_atomically(cached) as file:
        np.save(file, features)
    return features
