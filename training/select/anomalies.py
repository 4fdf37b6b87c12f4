"""Distances of images to photos, in features of EfficientNet-Lite1, which the discriminator uses, too."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from training.evaluate.features import Extractor
from training.evaluate.metrics import Features, find_nearest
from training.model.backbone import build_backbone, load_weights
from training.records import UNREADABLE, open_atomically

SIZE = 128  # pixels of the network's input
PATCH_GROUP, POOLED_GROUP = 5, 8  # block groups; patches are 8x8 places of 112 channels
BANK_PATCHES = 20_000  # of the photos, to compare with
FURTHEST_PATCHES = 8  # of 64; their mean finds a local fault


@dataclass(frozen=True)
class ImageDistances:
    """Pooled features of images, and their distances to the nearest photo."""

    features: Features  # [N, 1280]
    distances: NDArray[np.float32]  # [N, 2]: of the whole image, and the mean of its furthest patches


class PhotoDistance:
    """A function from images to their distances to some photos."""

    def __init__(self, photos: NDArray[np.uint8]) -> None:
        """Compare with `photos` uint8[P, S, S, 3]."""
        backbone = build_backbone("lite1", load_weights("lite1"), taps=(PATCH_GROUP, POOLED_GROUP), size=SIZE)
        patches = layers.AveragePooling2D(3, strides=1, padding="same", dtype="float32")(backbone.outputs[0])
        pooled = layers.GlobalAveragePooling2D(dtype="float32")(backbone.outputs[1])
        self._channels, self._pooled = patches.shape[-1], pooled.shape[-1]
        outputs = layers.Concatenate(dtype="float32")([pooled, layers.Flatten(dtype="float32")(patches)])
        self._extract = Extractor("EfficientNet-Lite1", keras.Model(backbone.input, outputs))
        self.photo_features, patches = self._split(self._extract(photos, progress="photos"))
        self._deviation = patches.std(axis=0).clip(1e-6)
        rows = np.random.default_rng(0).permutation(len(patches))[:BANK_PATCHES]
        self._bank = patches[rows] / self._deviation

    def _split(self, outputs: Features) -> tuple[Features, Features]:
        """Return pooled features [N, 1280] and patches [N * 64, 112]."""
        # A view would keep the patches, 67 MB of a chunk.
        return outputs[:, : self._pooled].copy(), outputs[:, self._pooled :].reshape(-1, self._channels)

    def __call__(self, images: NDArray[np.uint8]) -> ImageDistances:
        """Return the distances of `images` uint8[N, S, S, 3].

        The distance of patches follows PatchCore (Roth et al. 2022), without its weighting of neighbours.
        """
        features, patches = self._split(self._extract(images))
        whole = find_nearest(features, self.photo_features)[1]
        local = find_nearest(patches / self._deviation, self._bank)[1].reshape(len(images), -1)
        local.partition(local.shape[1] - FURTHEST_PATCHES, axis=1)
        return ImageDistances(features, np.stack([whole, local[:, -FURTHEST_PATCHES:].mean(axis=1)], axis=1))


def save_distances(image_distances: ImageDistances, path: Path, key: str) -> None:
    """Write `image_distances` to `path`; `key` names generator and photos. Raises OSError."""
    with open_atomically(path) as file:
        np.savez(file, key=key, features=image_distances.features, distances=image_distances.distances)


def load_distances(path: Path, key: str) -> ImageDistances | None:
    """Return the content of `path`, or None if it is missing, damaged or of another `key`."""
    with suppress(*UNREADABLE), path.open("rb") as stream, np.lib.npyio.NpzFile(stream) as file:
        if str(file["key"]) == key:
            return ImageDistances(file["features"], file["distances"])
    return None
