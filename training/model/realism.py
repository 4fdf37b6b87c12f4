"""A penalty on generated images that resemble no photo.

It is related to the realism score of Kynkäänniemi et al. 2019, which compares distances to the nearest photos, too.
"""

from typing import Any

import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from training.model.backbone import build_backbone, load_weights
from training.model.replicas import Tensor

PHOTOS = 2_048  # to compare with: their features take 10 MB
IMAGES = 512  # generated, for the typical distance
BATCH = 32


class Realism(layers.Layer):
    """The mean of max(0, d / t - 1) over a batch of images.

    d is the distance of an image to the nearest of up to PHOTOS photos, in the features of EfficientNet-Lite1 after its
    last convolution, averaged over space. t is the mean of d over IMAGES images of the generator that a stage begins
    with. So an image that is as close to a photo as those are on average has no penalty.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__(name="realism")
        self.backbone = build_backbone("lite1", load_weights("lite1"), (8,), image_size)
        width = self.backbone.outputs[0].shape[-1]
        self.photo_features = self.add_weight((PHOTOS, width), "zeros", trainable=False, name="photo_features")
        self.typical_distance = self.add_weight((), "ones", trainable=False, name="typical_distance")
        self.built = True

    @property
    def state(self) -> list[Any]:
        """The variables that depend on photos and generator."""
        return [self.photo_features, self.typical_distance]

    def extract_features(self, images: Tensor) -> Tensor:
        """Return the features float32[N, D] of `images` float32[N, S, S, 3] in [-1, 1]."""
        return ops.mean(self.backbone(images * (127.5 / 128.0) + 0.5 / 128.0), (1, 2))

    def measure_distances(self, images: Tensor) -> Tensor:
        """Return the distance float32[N] of each of `images` float32[N, S, S, 3] to the nearest photo."""
        features, photos = self.extract_features(images), self.photo_features
        products = ops.matmul(features, ops.transpose(photos))
        squares = ops.sum(ops.square(features), 1)[:, None] + ops.sum(ops.square(photos), 1) - 2.0 * products
        return ops.sqrt(ops.maximum(ops.min(squares, 1), 1e-6))  # the gradient of a root of 0 is infinite

    def call(self, images: Tensor) -> Tensor:
        """Return the penalty, a scalar, of `images` float32[N, S, S, 3] in [-1, 1]."""
        return ops.mean(ops.relu(self.measure_distances(images) / self.typical_distance - 1.0))

    def set_statistics(self, photos: NDArray[np.uint8], images: NDArray[np.uint8]) -> None:
        """Set photos and typical distance from `photos` and generated `images`, each uint8[N, S, S, 3]."""
        features = _map_batches(self.extract_features, photos)
        self.photo_features.assign(np.resize(features, self.photo_features.shape))  # few photos are repeated
        self.typical_distance.assign(_map_batches(self.measure_distances, images).mean())


def _map_batches(function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    return np.concatenate([ops.convert_to_numpy(function(ops.cast(b, "float32") / 127.5 - 1.0)) for b in batches])
