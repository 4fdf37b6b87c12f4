"""Fuse a trained generator for serving, exactly: fewer and cheaper operations with the same pictures.

Training keeps apart what serving can join. Batch normalisation with frozen statistics is a scale and a shift, which
fold into the weights before it. Nearest upsampling and a 3x3 convolution are one 4x4 transposed convolution of
stride 2: 16 multiplications where there were 36.
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

from training.errors import ExportError
from training.networks import SLOPE

Weights = NDArray[np.float64]  # until the graph is built: folding in float32 would round twice

# Upsampled rows 2i and 2i+1 are both row i, so of the three taps (-1, 0, +1) of a convolution, row 2i sees row i-1
# once and row i twice, row 2i+1 sees row i twice and row i+1 once. Row k of SPREAD says which taps add up to tap k of
# the transposed convolution (out[y] gets in[i] times tap y - 2i + 1).
SPREAD = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float64)


@dataclass(frozen=True)
class Stage:
    """One affine operation of the fused generator, and whether LeakyReLU follows."""

    kind: Literal["dense", "conv", "upsample_conv"]
    kernel: Weights  # [in, out], or [height, width, in, out]
    bias: Weights
    activated: bool


def fuse(generator: keras.Model) -> list[Stage]:
    """Return the stages of `generator` (of `networks.build_generator`), its batch normalisations folded in.

    Raises:
        ExportError: the network has a layer that this function does not know.
    """
    stages: list[Stage] = []
    upsampled = False
    for layer in generator.layers:
        match layer:
            case layers.InputLayer() | layers.UnitNormalization() | layers.Rescaling() | layers.Reshape():
                continue  # `build_function` does these
            case layers.Activation() if layer.activation is keras.activations.tanh:
                continue
            case layers.UpSampling2D():
                upsampled = True
            case layers.Dense():
                stages.append(_stage("dense", layer))
            case layers.Conv2D() if upsampled:
                stages.append(_stage("upsample_conv", layer))
                upsampled = False
            case layers.Conv2D():
                stages.append(_stage("conv", layer))
            case layers.BatchNormalization():
                stages[-1] = _fold(stages[-1], layer)
            case layers.LeakyReLU() if np.isclose(layer.negative_slope, SLOPE):
                stages[-1] = replace(stages[-1], activated=True)
            case _:
                raise ExportError(f"The generator's layer {layer.name} ({type(layer).__name__}) cannot be fused.")
    return stages


def _stage(kind: Literal["dense", "conv", "upsample_conv"], layer: layers.Layer) -> Stage:
    kernel = np.asarray(layer.kernel, np.float64)
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(kernel.shape[-1])
    if kind == "upsample_conv":
        kernel = np.einsum("ya,xb,abio->yxio", SPREAD, SPREAD, kernel)
    return Stage(kind, kernel, bias, activated=False)


def _fold(stage: Stage, normalisation: layers.BatchNormalization) -> Stage:
    scale = np.asarray(normalisation.gamma, np.float64) / np.sqrt(
        np.asarray(normalisation.moving_variance, np.float64) + normalisation.epsilon
    )
    shift = np.asarray(normalisation.beta, np.float64) - scale * np.asarray(normalisation.moving_mean, np.float64)
    repeats = stage.bias.size // scale.size  # a dense layer's output is 4x4 pictures of those channels
    scale, shift = np.tile(scale, repeats), np.tile(shift, repeats)
    return replace(stage, kernel=stage.kernel * scale, bias=stage.bias * scale + shift)


def build_function(stages: Sequence[Stage], latent_dim: int) -> Callable[[Any], Any]:
    """Return a function of TensorFlow: latents float32[N, latent_dim] -> images float32[N, S, S, 3] in [-1, 1].

    The weights become constants of the graph: nothing is left that a model server would have to restore.
    """
    weights = [(tf.constant(s.kernel, tf.float32), tf.constant(s.bias, tf.float32)) for s in stages]

    def generate(latents: Any) -> Any:
        length = tf.sqrt(tf.reduce_sum(tf.square(latents), axis=1, keepdims=True))
        x = latents * (math.sqrt(latent_dim) / tf.maximum(length, 1e-6))
        for stage, (kernel, bias) in zip(stages, weights, strict=True):
            if stage.kind == "dense":
                x = tf.reshape(tf.matmul(x, kernel) + bias, (-1, 4, 4, stage.bias.size // 16))
            elif stage.kind == "upsample_conv":
                n, size, width = tf.shape(x)[0], 2 * x.shape[1], stage.bias.size
                # TensorFlow's transposed convolution wants its filter as [height, width, out, in].
                filters = tf.transpose(kernel, (0, 1, 3, 2))
                x = tf.nn.conv2d_transpose(x, filters, (n, size, size, width), 2, "SAME") + bias
            else:
                x = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
            if stage.activated:
                x = tf.nn.leaky_relu(x, SLOPE)
        return tf.tanh(x)

    return generate
