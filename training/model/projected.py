"""The projected discriminator (Sauer et al. 2021): small trained heads on frozen ImageNet features."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from training.model.backbone import build_backbone, load_weights
from training.model.networks import SLOPE, FusedBatchNormalization
from training.model.replicas import Tensor, count_replicas

MAX_WIDTH = 128  # channels of a head, and of the projection of 8x8 features and smaller
MIN_SIZE = 8  # pixels; heads halve larger features down to this size
COLOUR_SIZE = 32  # pixels of the image whose colours a head sees directly
# From RGB to luma and two colour differences (ITU-R BT.601).
RGB_TO_YCBCR = np.array([[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], np.float32)
MIN_DEVIATION = 1e-2  # of colours in [-1, 1]; the colour differences of greyscale photos have 1e-9
STATISTICS_PHOTOS = 512  # for the statistics of the features
STATISTICS_BATCH = 32


class ProjectedDiscriminator(keras.Model):
    """A network from images to a list of logits, one per head.

    Images are float32[N, S, S, 3] in [-1, 1], resized to `input_size`. Logits are float32[N, 5, 5, 1], or
    float32[N, 1, 1, 1] where the features are 4x4. The features are outputs of some block groups of EfficientNet-Lite1.
    Fixed random 1x1 convolutions mix them across channels and from coarse to fine. They are then standardised, and each
    scale has one head. With `sees_colours`, one more head sees the image itself at 32x32 px, as luma and colour
    differences: ImageNet features hardly tell grey from dark red.
    """

    def __init__(
        self,
        input_size: int,
        *,
        taps: Sequence[int],
        widths: Sequence[int],
        first_width: int,
        seed: int,
        sees_colours: bool = False,
    ):
        """Use the block groups `taps` (1 to 7), projected to `widths`; heads begin with `first_width` channels."""
        super().__init__(name="discriminator")
        self.input_size, self.sees_colours = input_size, sees_colours
        self.backbone = build_backbone("lite1", load_weights("lite1"), taps, input_size)
        shapes = [output.shape[1:] for output in self.backbone.outputs]
        rng = np.random.default_rng((seed, 2))
        scales = [*zip(taps, shapes, widths, strict=True)]
        self.projections = [
            self._add_constant(f"projection_{tap}", _random_1x1(rng, shape[-1], width)) for tap, shape, width in scales
        ]
        self.mixings = [
            self._add_constant(f"mixing_{taps[i]}", _random_1x1(rng, widths[i + 1], widths[i]))
            for i in range(len(taps) - 1)
        ]
        self.means = [self._add_constant(f"mean_{tap}", np.zeros(width)) for tap, _, width in scales]
        self.deviations = [self._add_constant(f"deviation_{tap}", np.ones(())) for tap in taps]
        self.heads = [build_head(shape[0], width, first_width, name=f"head_{tap}") for tap, shape, width in scales]
        if sees_colours:
            self.means.append(self._add_constant("mean_colours", np.zeros(3)))
            self.deviations.append(self._add_constant("deviation_colours", np.ones(3)))
            self.heads.append(build_head(COLOUR_SIZE, 3, first_width, name="head_colours"))
        self.built = True

    def _add_constant(self, name: str, value: NDArray[Any]) -> Any:
        return self.add_weight(value.shape, keras.initializers.Constant(value), trainable=False, name=name)

    @property
    def state(self) -> list[Any]:
        """All variables except the backbone's, which come from its wheel."""
        frozen = {id(weight) for weight in self.backbone.variables}
        return [v for v in self.variables if id(v) not in frozen]

    def mixed_features(self, images: Tensor) -> list[Tensor]:
        """Return the mixed features of every tap, fine to coarse. Each is float32[N, H, W, C], not yet standardised."""
        size, original = images.shape[1], images
        if size > self.input_size:
            pool = size // self.input_size
            images = ops.average_pool(images, pool, strides=pool)
        elif size < self.input_size:
            images = ops.image.resize(images, (self.input_size, self.input_size), interpolation="bilinear")
        outputs = self.backbone(images * (127.5 / 128.0) + 0.5 / 128.0)  # from [-1, 1] to (0..255 - 127) / 128
        mixed = [ops.matmul(o, p) for o, p in zip(outputs, self.projections, strict=True)]
        for i in reversed(range(len(mixed) - 1)):
            coarse, (height, width) = ops.matmul(mixed[i + 1], self.mixings[i]), mixed[i].shape[1:3]
            if coarse.shape[1:3] != (height, width):
                coarse = ops.image.resize(coarse, (height, width), interpolation="bilinear")
            mixed[i] = (mixed[i] + coarse) / math.sqrt(2.0)
        if self.sees_colours:
            pool = size // COLOUR_SIZE
            mixed.append(ops.matmul(ops.average_pool(original, pool, strides=pool), RGB_TO_YCBCR))
        return mixed

    def call(self, images: Tensor, training: bool = False) -> list[Tensor]:
        """Return the logits of every head. In training, each head normalises by the statistics of this batch."""
        taps = zip(self.mixed_features(images), self.means, self.deviations, self.heads, strict=True)
        return [head((x - mean) / deviation, training=training) for x, mean, deviation, head in taps]

    def set_feature_statistics(self, photos: NDArray[np.uint8]) -> None:
        """Set the features' mean per channel and deviation per tap from `photos` uint8[N, S, S, 3]."""
        batches = []
        for start in range(0, len(photos), STATISTICS_BATCH):
            images = ops.cast(photos[start : start + STATISTICS_BATCH], "float32") / 127.5 - 1.0
            batches.append([ops.convert_to_numpy(x) for x in self.mixed_features(images)])
        for tap, (mean, deviation) in enumerate(zip(self.means, self.deviations, strict=True)):
            x = np.concatenate([batch[tap] for batch in batches])
            channel_means = x.mean(axis=(0, 1, 2), dtype=np.float64)
            mean.assign(channel_means.astype(np.float32))
            axes = tuple(range(x.ndim - deviation.ndim))
            deviation.assign(np.sqrt(((x - channel_means) ** 2).mean(axis=axes)).clip(MIN_DEVIATION).astype(np.float32))


def _random_1x1(rng: np.random.Generator, inputs: int, outputs: int) -> NDArray[np.float32]:
    """Return a kernel float32[inputs, outputs] that preserves variance: N(0, 1 / inputs)."""
    return (rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)).astype(np.float32)


def build_head(size: int, channels: int, first_width: int, *, name: str) -> keras.Model:
    """Return a network from float32[N, size, size, channels] to logits of 5x5, or of 1x1 for size 4."""
    features = keras.Input((size, size, channels))
    x: Any = features
    if size > MIN_SIZE:
        for level in range(int(math.log2(size // MIN_SIZE))):
            x = _convolve(x, min(first_width << level, MAX_WIDTH), 4, 2)
    else:
        x = _convolve(x, MAX_WIDTH, 3, 1)
    x = SpectralConv(1, 4, padding="valid", name="logits")(x)
    return keras.Model(features, x, name=name)


def _convolve(x: Tensor, width: int, kernel: int, stride: int) -> Tensor:
    x = SpectralConv(width, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = FusedBatchNormalization(momentum=0.9, synchronized=count_replicas() > 1)(x)
    return layers.LeakyReLU(SLOPE)(x)


class SpectralConv(layers.Conv2D):
    """A convolution with spectral normalisation (Miyato et al. 2018, algorithm 1): one power iteration per call."""

    def build(self, input_shape: Any) -> None:
        """Create the kernel and `u` float32[filters], approximately the left singular vector."""
        super().build(input_shape)
        self.u = self.add_weight(
            name="u",
            shape=(self.filters,),
            initializer="random_normal",
            trainable=False,
            aggregation="only_first_replica",  # all replicas compute the same value
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Return float[N, H', W', filters]."""
        matrix = ops.reshape(self.kernel, (-1, self.filters))
        constant = ops.stop_gradient(matrix)
        v = _normalise(ops.matmul(constant, self.u))
        u = _normalise(ops.matmul(ops.transpose(constant), v))
        if training:
            self.u.assign(u)
        sigma = ops.sum(v * ops.matmul(matrix, u))
        # From `matrix`, so that a call gives the kernel one gradient. TensorFlow adds three or more gradients in any
        # order, also with op determinism: after 100 batches, two equal runs differed.
        kernel = ops.reshape(matrix / sigma, self.kernel.shape)
        x = ops.conv(inputs, kernel, strides=self.strides, padding=self.padding)
        return x if self.bias is None else x + self.bias


def _normalise(vector: Tensor) -> Tensor:
    return vector / (ops.norm(vector) + 1e-12)
