"""The generator and the plain discriminator: tapering DCGANs (Radford et al. 2016)."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from training.model.replicas import count_replicas

SLOPE = 0.2  # negative slope of LeakyReLU, as in DCGAN


def build_generator(latent_dim: int, channels: Sequence[int]) -> keras.Model:
    """Return a network from latents float32[N, latent_dim] to images.

    Images are float32[N, S, S, 3] in [-1, 1] with S = 4 * 2 ** (len(channels) - 1). Each level doubles the size by
    nearest upsampling and a 3x3 convolution (Odena et al. 2016), computed as one operation. The last level adds a
    smooth filter: without it, images had 1.5 to 2.6 times the photos' power at the finest frequency, visible grids, and
    twice the KID.
    """
    latents = keras.Input((latent_dim,), name="latents")
    # Pixel norm (Karras et al. 2018): only the latent's direction matters, not its length.
    x = layers.UnitNormalization(name="pixel_norm")(latents)
    x = layers.Rescaling(math.sqrt(latent_dim), name="unit_variance")(x)
    x = layers.Dense(4 * 4 * channels[0], use_bias=False, name="dense")(x)
    x = layers.Reshape((4, 4, channels[0]), name="reshape")(x)
    x = _normalise_and_activate(x, 4)
    for level, width in enumerate(channels[1:], start=3):
        size = 2**level
        x = UpsampleConv(width, smooth=level == len(channels) + 1, name=f"upsample_conv_{size}")(x)
        x = _normalise_and_activate(x, size)
    x = layers.Conv2D(3, 3, padding="same", name="to_rgb", dtype="float32")(x)
    images = layers.Activation("tanh", name="images", dtype="float32")(x)
    return keras.Model(latents, images, name="generator")


# Row k: the weights of the three taps of the convolution after nearest upsampling, in tap k of the transposed one.
NEAREST = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
NEAREST_2D = np.kron(NEAREST, NEAREST)  # float32[16, 9]: both directions in one matrix product
# StyleGAN's filter (Karras et al. 2018): it removes patterns that alternate from pixel to pixel.
BLUR = np.outer((1, 2, 1), (1, 2, 1)).astype(np.float32) / 16


class UpsampleConv(layers.Layer):
    """Nearest upsampling and a 3x3 convolution as one transposed convolution.

    It computes the same function of the same nine weights, with 16 multiplications instead of 36. It has no bias and
    stride 2. If `smooth`, BLUR comes last: before the convolution, the two would fuse into a 6x6 kernel with twice the
    multiplications.
    """

    def __init__(self, filters: int, *, smooth: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.smooth = filters, smooth

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernel float32[3, 3, C, filters]."""
        shape = (3, 3, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="glorot_uniform")

    def call(self, x: Any) -> Any:
        """Return float[N, 2H, 2W, filters] for float[N, H, W, C]."""
        inputs = self.kernel.shape[2]
        taps = ops.reshape(ops.matmul(NEAREST_2D, ops.reshape(self.kernel, (9, -1))), (4, 4, inputs, self.filters))
        kernel = ops.swapaxes(taps, 2, 3)
        if not self.smooth:
            return ops.conv_transpose(x, kernel, strides=2, padding="same")
        # "valid" keeps the pixel beyond the border that BLUR reads.
        x = ops.conv_transpose(x, kernel, strides=2, padding="valid")
        for _ in range(2):  # equals BLUR; as a depthwise convolution a whole step takes 1.9 times as long under XLA
            x = ops.average_pool(x, 2, strides=1, padding="valid")
        return x


def _normalise_and_activate(x: Any, size: int) -> Any:
    # 0.9: with 0.99 the statistics lag 100 steps behind the weights
    x = FusedBatchNormalization(momentum=0.9, synchronized=count_replicas() > 1, name=f"norm_{size}")(x)
    return layers.LeakyReLU(SLOPE, name=f"activation_{size}")(x)


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras's layer, but training on TensorFlow uses its fused kernel. A step then takes 0.88 of the time."""

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return float[N, ..., C], normalised over all axes but the channels."""
        if not training or self.synchronized or x.ndim != 4 or keras.backend.backend() != "tensorflow":
            return super().call(x, training=training, mask=mask)
        import tensorflow as tf

        x, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, self.gamma, self.beta, epsilon=self.epsilon)
        count = ops.size(x) // x.shape[-1]
        # The kernel returns the sample variance.
        variance *= ops.cast(count - 1, "float32") / ops.cast(count, "float32")
        for moving, current in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + current * (1 - self.momentum))
        return x


def build_discriminator(image_size: int, channels: Sequence[int]) -> keras.Model:
    """Return a network from images to logits float32[N].

    Images are float32[N, S, S, 3] in [-1, 1]. It has no batch normalisation: photos and generated images come in
    separate batches, so the statistics would separate them (this showed as stripes). The last layer gets the standard
    deviation of the batch instead.
    """
    images = keras.Input((image_size, image_size, 3), name="images")
    x: Any = images
    for level, width in enumerate(channels, start=1):
        size = image_size >> level
        x = layers.Conv2D(width, 4, strides=2, padding="same", name=f"conv_{size}")(x)
        x = layers.LeakyReLU(SLOPE, name=f"activation_{size}")(x)
    x = MinibatchStandardDeviation(name="minibatch_standard_deviation")(x)
    x = layers.Conv2D(channels[-1], 3, padding="same", name="conv_last")(x)
    x = layers.LeakyReLU(SLOPE, name="activation_last")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(1, name="dense", dtype="float32")(x)
    logits = layers.Reshape((), name="logits", dtype="float32")(x)
    return keras.Model(images, logits, name="discriminator")


class MinibatchStandardDeviation(layers.Layer):
    """Appends one channel: the mean deviation over the batch, 0 for equal images (Karras et al. 2018, section 3)."""

    def call(self, x: Any) -> Any:
        """Return float[N, H, W, C + 1] for float[N, H, W, C]."""
        _, variance = ops.moments(x, axes=[0], synchronized=count_replicas() > 1)
        deviation = ops.mean(ops.sqrt(variance + 1e-8))  # 1e-8: the gradient of the root is infinite at 0
        channel = ops.broadcast_to(deviation, (*ops.shape(x)[:-1], 1))
        return ops.concatenate([x, channel], axis=-1)
