"""The projected discriminator (Sauer et al. 2021): small trained heads on frozen ImageNet features of the images."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from training.model.backbone import build_backbone, load_weights
from training.model.networks import SLOPE, FusedBatchNormalization
from training.model.replicas import count_replicas

Tensor = Any

WIDEST = 128  # channels of a head, and of the projection of 8x8 features and smaller
SMALLEST = 8  # pixels: heads halve larger features down to this side
MEASURED_PHOTOS = 512  # for the statistics of the features
MEASURED_AT_ONCE = 32


class ProjectedDiscriminator(keras.Model):
    """Images float32[N, S, S, 3] in [-1, 1] -> a list of logits float32[N, 5, 5, 1], one array per head.

    The images are resized to `input_size`. The outputs of some block groups of EfficientNet-Lite1 are mixed by fixed
    random 1x1 convolutions, across channels and from coarse to fine, then standardised; one head judges each scale.
    Features of 4x4 give logits float32[N, 1, 1, 1].
    """

    def __init__(self, input_size: int, *, taps: Sequence[int], widths: Sequence[int], first_width: int, seed: int):
        """Use the block groups `taps` (1 to 7), projected to `widths` channels; heads begin with `first_width`."""
        super().__init__(name="discriminator")
        self.input_size = input_size
        self.backbone = build_backbone("lite1", load_weights("lite1"), taps, input_size)
        sources = [output.shape[1:] for output in self.backbone.outputs]
        rng = np.random.default_rng((seed, 2))
        self.projections = [
            self._fixed(f"projection_{tap}", _random_1x1(rng, source[-1], width))
            for tap, source, width in zip(taps, sources, widths, strict=True)
        ]
        self.mixings = [
            self._fixed(f"mixing_{taps[i]}", _random_1x1(rng, widths[i + 1], widths[i])) for i in range(len(taps) - 1)
        ]
        self.means = [self._fixed(f"mean_{tap}", np.zeros(width)) for tap, width in zip(taps, widths, strict=True)]
        self.deviations = [self._fixed(f"deviation_{tap}", np.ones(())) for tap in taps]
        self.heads = [
            build_head(source[0], width, first_width, name=f"head_{tap}")
            for tap, source, width in zip(taps, sources, widths, strict=True)
        ]
        self.built = True

    def _fixed(self, name: str, value: NDArray[Any]) -> Any:
        return self.add_weight(
            name=name, shape=value.shape, initializer=lambda shape, dtype=None: ops.cast(value, dtype), trainable=False
        )

    @property
    def state(self) -> list[Any]:
        """All variables but the backbone's, which come from its wheel."""
        return [v for v in self.variables if all(v is not weight for weight in self.backbone.variables)]

    def mixed_features(self, images: Tensor) -> list[Tensor]:
        """Return the mixed features float32[N, H, W, C] of every tap, fine to coarse, before standardisation."""
        size = images.shape[1]
        if size > self.input_size:
            pool = size // self.input_size
            images = ops.average_pool(images, pool, strides=pool)
        elif size < self.input_size:
            images = ops.image.resize(images, (self.input_size, self.input_size), interpolation="bilinear")
        outputs = self.backbone(images * (127.5 / 128.0) + 0.5 / 128.0)  # [-1, 1] as (0..255 - 127) / 128
        mixed = [ops.matmul(o, p) for o, p in zip(outputs, self.projections, strict=True)]
        for i in reversed(range(len(mixed) - 1)):
            coarse, (height, width) = ops.matmul(mixed[i + 1], self.mixings[i]), mixed[i].shape[1:3]
            if coarse.shape[1:3] != (height, width):
                coarse = ops.image.resize(coarse, (height, width), interpolation="bilinear")
            mixed[i] = (mixed[i] + coarse) / math.sqrt(2.0)
        return mixed

    def call(self, images: Tensor, training: bool = False) -> list[Tensor]:
        """Return the logits; in training each head normalises by this batch's own statistics."""
        parts = zip(self.mixed_features(images), self.means, self.deviations, self.heads, strict=True)
        return [head((x - mean) / deviation, training=training) for x, mean, deviation, head in parts]

    def standardise_by(self, photos: NDArray[np.uint8]) -> None:
        """Set the features' mean per channel and deviation per tap from `photos` uint8[N, S, S, 3]."""
        batches = []
        for start in range(0, len(photos), MEASURED_AT_ONCE):
            images = ops.cast(photos[start : start + MEASURED_AT_ONCE], "float32") / 127.5 - 1.0
            batches.append([ops.convert_to_numpy(x) for x in self.mixed_features(images)])
        for tap, (mean, deviation) in enumerate(zip(self.means, self.deviations, strict=True)):
            x = np.concatenate([batch[tap] for batch in batches])
            centre = x.mean(axis=(0, 1, 2), dtype=np.float64)
            mean.assign(centre.astype(np.float32))
            deviation.assign(np.float32(np.sqrt(((x - centre) ** 2).mean())))


def _random_1x1(rng: np.random.Generator, inputs: int, outputs: int) -> NDArray[np.float32]:
    """Return a kernel float32[inputs, outputs] that keeps the variance: N(0, 1 / inputs)."""
    return (rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)).astype(np.float32)


def build_head(size: int, channels: int, first_width: int, *, name: str) -> keras.Model:
    """Return features float32[N, size, size, channels] -> logits float32[N, 5, 5, 1], or [N, 1, 1, 1] for size 4."""
    features = keras.Input((size, size, channels))
    x: Any = features
    if size > SMALLEST:
        for level in range(int(math.log2(size // SMALLEST))):
            x = _convolve(x, min(first_width << level, WIDEST), 4, 2)
    else:
        x = _convolve(x, WIDEST, 3, 1)
    x = SpectralConv(1, 4, padding="valid", name="logits")(x)
    return keras.Model(features, x, name=name)


def _convolve(x: Tensor, width: int, kernel: int, stride: int) -> Tensor:
    x = SpectralConv(width, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = FusedBatchNormalization(momentum=0.9, synchronized=count_replicas() > 1)(x)
    return layers.LeakyReLU(SLOPE)(x)


class SpectralConv(layers.Conv2D):
    """A convolution whose kernel is divided by its largest singular value (Miyato et al. 2018, algorithm 1).

    One power iteration a call in training; `u` approximates the left singular vector.
    """

    def build(self, input_shape: Any) -> None:
        """Create the kernel and the vector `u` float32[filters]."""
        super().build(input_shape)
        self.u = self.add_weight(
            name="u",
            shape=(self.filters,),
            initializer="random_normal",
            trainable=False,
            aggregation="only_first_replica",  # all replicas compute the same
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Return float[N, H', W', filters]."""
        matrix = ops.reshape(self.kernel, (-1, self.filters))
        frozen = ops.stop_gradient(matrix)
        v = _unit(ops.matmul(frozen, self.u))
        u = _unit(ops.matmul(ops.transpose(frozen), v))
        if training:
            self.u.assign(u)
        sigma = ops.sum(v * ops.matmul(matrix, u))
        x = ops.conv(inputs, self.kernel / sigma, strides=self.strides, padding=self.padding)
        return x if self.bias is None else x + self.bias


def _unit(vector: Tensor) -> Tensor:
    return vector / (ops.norm(vector) + 1e-12)
