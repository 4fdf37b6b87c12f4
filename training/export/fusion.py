"""Fusion of a trained generator into fewer, cheaper operations.

The fused function is mathematically the same. Batch normalisation with frozen statistics is a scale and a shift, which
fold into the weights before it. An upsampling convolution of nine weights becomes 16 precomputed weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from training.model.networks import BLUR, NEAREST, SLOPE, UpsampleConv

Kind = Literal["dense", "conv", "upsample_conv", "smooth_upsample_conv"]
Weights = NDArray[np.float64]  # float64, because folding in float32 would round twice


@dataclass(frozen=True)
class Stage:
    """One affine operation of the fused generator."""

    kind: Kind
    kernel: Weights  # [in, out], or [height, width, in, out]
    bias: Weights
    has_activation: bool  # whether LeakyReLU follows


def fuse(generator: keras.Model) -> list[Stage]:
    """Return the stages of a generator of `build_generator`, without batch normalisation.

    All other layers are part of `build_function`. `command.check_saved_model` compares the images.
    """
    stages: list[Stage] = []
    for layer in generator.layers:
        match layer:
            case layers.Dense():
                stages.append(_stage("dense", layer.kernel, layer.bias))
            case UpsampleConv():
                kernel = np.einsum("ya,xb,abio->yxio", NEAREST, NEAREST, np.asarray(layer.kernel, np.float64))
                stages.append(_stage("smooth_upsample_conv" if layer.smooth else "upsample_conv", kernel, bias=None))
            case layers.Conv2D():
                stages.append(_stage("conv", layer.kernel, layer.bias))
            case layers.BatchNormalization():
                stages[-1] = _fold(stages[-1], layer)
            case layers.LeakyReLU():
                stages[-1] = replace(stages[-1], has_activation=True)
    return stages


def _stage(kind: Kind, kernel: Any, bias: Any | None) -> Stage:
    kernel = np.asarray(kernel, np.float64)
    return Stage(kind, kernel, np.zeros(kernel.shape[-1]) if bias is None else np.asarray(bias, np.float64), False)


def _fold(stage: Stage, normalisation: layers.BatchNormalization) -> Stage:
    gamma, beta, mean, variance = (weight.astype(np.float64) for weight in normalisation.get_weights())
    scale = gamma / np.sqrt(variance + normalisation.epsilon)
    shift = beta - scale * mean
    repeats = stage.bias.size // scale.size  # a dense layer's output has 4x4 pixels of these channels
    scale, shift = np.tile(scale, repeats), np.tile(shift, repeats)
    return replace(stage, kernel=stage.kernel * scale, bias=stage.bias * scale + shift)


def build_function(stages: Sequence[Stage], latent_dim: int) -> Callable[[Any], Any]:
    """Return a TensorFlow function from latents to images.

    Latents are float32[N, latent_dim], images float32[N, S, S, 3] in [-1, 1]. The weights become constants of the
    graph, so a model server has no variables to restore.
    """

    def generate(latents: Any) -> Any:
        # Created inside: TensorFlow does not fold constants from outside into a loop.
        weights = [(tf.constant(s.kernel, tf.float32), tf.constant(s.bias, tf.float32)) for s in stages]
        length = tf.sqrt(tf.reduce_sum(tf.square(latents), axis=1, keepdims=True))
        x = latents * (math.sqrt(latent_dim) / tf.maximum(length, 1e-6))
        for stage, (kernel, bias) in zip(stages, weights, strict=True):
            if stage.kind == "dense":
                x = tf.reshape(tf.matmul(x, kernel) + bias, (-1, 4, 4, stage.bias.size // 16))
            elif stage.kind == "conv":
                x = _conv_by_blocks(x, kernel) + bias
            else:
                x = _upsample_conv(x, kernel, smooth=stage.kind == "smooth_upsample_conv") + bias
            if stage.has_activation:
                x = tf.nn.leaky_relu(x, SLOPE)
        return tf.tanh(x)

    return generate


def _conv_by_blocks(x: Any, kernel: Any) -> Any:
    """Return the 3x3 convolution of `x`, computed in blocks of 2x2 pixels.

    `x` has even sides. oneDNN pads 3 channels to 16. As 12 channels of a 4x4 convolution of stride 2 they waste less:
    at batch 16 the whole generator takes 0.92 of the time.
    """
    corners = [tf.pad(kernel, ((dy, 1 - dy), (dx, 1 - dx), (0, 0), (0, 0))) for dy in (0, 1) for dx in (0, 1)]
    return tf.nn.depth_to_space(tf.nn.conv2d(x, tf.concat(corners, axis=-1), 2, "SAME"), 2)


def _upsample_conv(x: Any, kernel: Any, *, smooth: bool) -> Any:
    """Return the result of `networks.UpsampleConv`, with its 16 precomputed weights."""
    size, width = 2 * x.shape[1] + 2 * smooth, kernel.shape[-1]
    shape = (tf.shape(x)[0], size, size, width)
    # TensorFlow's transposed convolution takes a filter [height, width, out, in].
    x = tf.nn.conv2d_transpose(x, tf.transpose(kernel, (0, 1, 3, 2)), shape, 2, "VALID" if smooth else "SAME")
    if smooth:
        x = tf.nn.depthwise_conv2d(x, np.tile(BLUR[..., None, None], (1, 1, width, 1)), (1, 1, 1, 1), "VALID")
    return x
