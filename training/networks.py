"""The two networks: a DCGAN-shaped pyramid (Radford et al. 2016) whose width tapers with resolution."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from training.replicas import count_replicas

SLOPE = 0.2  # of LeakyReLU below zero, as in DCGAN


def build_generator(latent_dim: int, channels: Sequence[int]) -> keras.Model:
    """Return latents float32[N, latent_dim] -> images float32[N, S, S, 3] in [-1, 1], S = 4 * 2 ** (len(channels) - 1).

    Each level doubles the picture by nearest upsampling and a 3x3 convolution (Odena et al. 2016), computed as one
    operation; the last one by a smooth filter. With nearest there, too, the pictures had 1.5 to 2.6 times the power of
    the photos at the finest pitch, grids on the skins, and twice the KID.
    """
    latents = keras.Input((latent_dim,), name="latents")
    # Pixel norm (Karras et al. 2018): the latent's direction counts, its length does not.
    x = layers.UnitNormalization(name="pixel_norm")(latents)
    x = layers.Rescaling(math.sqrt(latent_dim), name="unit_variance")(x)
    x = layers.Dense(4 * 4 * channels[0], use_bias=False, name="dense")(x)
    x = layers.Reshape((4, 4, channels[0]), name="reshape")(x)
    x = _normalise_and_activate(x, 4)
    for level, width in enumerate(channels[1:], start=3):
        size = 2**level
        filtered = SMOOTH if level == len(channels) + 1 else NEAREST
        x = UpsampleConv(width, filtered, name=f"upsample_conv_{size}")(x)
        x = _normalise_and_activate(x, size)
    x = layers.Conv2D(3, 3, padding="same", name="to_rgb", dtype="float32")(x)
    images = layers.Activation("tanh", name="images", dtype="float32")(x)
    return keras.Model(latents, images, name="generator")


# Filters of upsampling, each beside its shifts by one and two pixels: so row k says with which weights the three taps
# of a convolution behind it make up tap k of one transposed convolution. SMOOTH is StyleGAN's (Karras et al. 2018):
# nearest and then (1, 2, 1) / 4, through which nothing comes that alternates from pixel to pixel.
NEAREST = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
SMOOTH = np.array([[0, 0, 1], [0, 1, 3], [1, 3, 3], [3, 3, 1], [3, 1, 0], [1, 0, 0]], np.float32) / np.float32(4)


class UpsampleConv(layers.Layer):
    """Upsampling by NEAREST or SMOOTH and a 3x3 convolution without bias, as one transposed convolution of stride 2.

    The same function of the same nine weights. With NEAREST it has 16 multiplications where the pair has 36: 1.3 times
    as many training steps a second.
    """

    def __init__(self, filters: int, upsampling: NDArray[np.float32], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.upsampling = upsampling

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernel float32[3, 3, C, filters]."""
        self.kernel = self.add_weight(
            name="kernel", shape=(3, 3, input_shape[-1], self.filters), initializer="glorot_uniform"
        )

    def call(self, x: Any) -> Any:
        """Return float[N, 2H, 2W, filters] for float[N, H, W, C]."""
        kernel = ops.einsum("ya,xb,abio->yxoi", self.upsampling, self.upsampling, self.kernel)
        return ops.conv_transpose(x, kernel, strides=2, padding="same")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the doubled shape."""
        batch, height, width, _ = input_shape
        return (batch, 2 * height, 2 * width, self.filters)  # type: ignore[operator]


def _normalise_and_activate(x: Any, size: int) -> Any:
    # 0.99 lags 100 steps behind the weights
    x = layers.BatchNormalization(momentum=0.9, synchronized=count_replicas() > 1, name=f"norm_{size}")(x)
    return layers.LeakyReLU(SLOPE, name=f"activation_{size}")(x)


def build_discriminator(image_size: int, channels: Sequence[int]) -> keras.Model:
    """Return images float32[N, S, S, 3] in [-1, 1] -> logits float32[N].

    No batch normalisation: real and generated pictures come in separate batches, and its statistics would tell
    them apart (seen as stripes). The spread of the batch reaches the last layer instead.
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
    """Append one channel: how much the pictures of the batch differ, averaged (Karras et al. 2018, section 3).

    A generator that paints one apple only is found out at once.
    """

    def call(self, x: Any) -> Any:
        """Return float[N, H, W, C + 1] for float[N, H, W, C]."""
        _, variance = ops.moments(x, axes=[0], synchronized=count_replicas() > 1)
        spread = ops.mean(ops.sqrt(variance + 1e-8))  # 1e-8: the root's slope is infinite at 0
        channel = ops.broadcast_to(spread, (*ops.shape(x)[:-1], 1))
        return ops.concatenate([x, channel], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape with one more channel."""
        return (*input_shape[:-1], input_shape[-1] + 1)  # type: ignore[operator]
