"""Fuse a trained generator for serving, exactly: fewer and cheaper operations with the same pictures.

Training keeps apart what serving can join: batch normalisation with frozen statistics is a scale and a shift, which
fold into the weights before it; and what upsampling makes of nine weights, the graph holds ready as sixteen.
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
from training.networks import SLOPE, SPREAD, SelfModulation, UpsampleConv

Weights = NDArray[np.float64]  # until the graph is built: folding in float32 would round twice


@dataclass(frozen=True)
class Linear:
    """What a dense layer holds."""

    kernel: Weights  # [in, out]
    bias: Weights  # [out]


@dataclass(frozen=True)
class Stage:
    """One affine operation of the fused generator, and what follows: modulation by the style, and LeakyReLU."""

    kind: Literal["dense", "conv", "upsample_conv"]
    kernel: Weights  # [in, out], or [height, width, in, out]
    bias: Weights
    modulation: Linear | None = None  # from a style to all scales, then all shifts
    activated: bool = False


@dataclass(frozen=True)
class Fused:
    """The fused generator: the layer that makes a style of a latent, and the stages that make a picture."""

    style: Linear
    stages: Sequence[Stage]


def fuse(generator: keras.Model) -> Fused:
    """Return `generator` (of `networks.build_generator`) with its batch normalisations folded in.

    Raises:
        ExportError: the network has a layer that this function does not know.
    """
    stages: list[Stage] = []
    style = generator.get_layer("style")
    for layer in generator.layers:
        match layer:
            case layers.InputLayer() | layers.UnitNormalization() | layers.Rescaling() | layers.Reshape():
                continue  # `build_function` does these
            case layers.Activation() if layer.activation is keras.activations.tanh:
                continue
            case layers.Dense() if layer is style:
                continue
            case layers.Dense():
                stages.append(_stage("dense", layer.kernel, layer.bias))
            case UpsampleConv():
                kernel = np.einsum("ya,xb,abio->yxio", SPREAD, SPREAD, np.asarray(layer.kernel, np.float64))
                stages.append(_stage("upsample_conv", kernel, bias=None))
            case layers.Conv2D():
                stages.append(_stage("conv", layer.kernel, layer.bias))
            case layers.BatchNormalization():
                stages[-1] = _fold(stages[-1], layer)
            case SelfModulation():
                stages[-1] = replace(stages[-1], modulation=_modulation(layer))
            case layers.LeakyReLU() if np.isclose(layer.negative_slope, SLOPE):
                stages[-1] = replace(stages[-1], activated=True)
            case _:
                raise ExportError(f"The generator's layer {layer.name} ({type(layer).__name__}) cannot be fused.")
    return Fused(_linear(style), stages)


def _linear(layer: layers.Dense) -> Linear:
    return Linear(np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64))


def _modulation(layer: SelfModulation) -> Linear:
    linear = _linear(layer.scales_and_shifts)
    one_more = np.repeat([1.0, 0.0], linear.bias.size // 2)  # the layer's scales are less one
    return replace(linear, bias=linear.bias + one_more)


def _stage(kind: Literal["dense", "conv", "upsample_conv"], kernel: Any, bias: Any | None) -> Stage:
    kernel = np.asarray(kernel, np.float64)
    return Stage(kind, kernel, np.zeros(kernel.shape[-1]) if bias is None else np.asarray(bias, np.float64))


def _fold(stage: Stage, normalisation: layers.BatchNormalization) -> Stage:
    scale = 1.0 / np.sqrt(np.asarray(normalisation.moving_variance, np.float64) + normalisation.epsilon)
    shift = -scale * np.asarray(normalisation.moving_mean, np.float64)
    repeats = stage.bias.size // scale.size  # a dense layer's output is 4x4 pictures of those channels
    scale, shift = np.tile(scale, repeats), np.tile(shift, repeats)
    return replace(stage, kernel=stage.kernel * scale, bias=stage.bias * scale + shift)


def build_function(generator: Fused, latent_dim: int) -> Callable[[Any], Any]:
    """Return a function of TensorFlow: latents float32[N, latent_dim] -> images float32[N, S, S, 3] in [-1, 1].

    The weights become constants of the graph: nothing is left that a model server would have to restore.
    """

    def constant(weights: Weights) -> Any:
        return tf.constant(weights, tf.float32)

    def apply(linear: tuple[Any, Any], x: Any) -> Any:
        kernel, bias = linear
        return tf.matmul(x, kernel) + bias

    style_of = constant(generator.style.kernel), constant(generator.style.bias)
    # All modulations are one product: many small ones cost more than their arithmetic.
    modulations = [stage.modulation for stage in generator.stages if stage.modulation]
    modulate = (
        constant(np.concatenate([m.kernel for m in modulations], axis=1)),
        constant(np.concatenate([m.bias for m in modulations])),
    )
    widths = [m.bias.size // 2 for m in modulations for _ in ("scale", "shift")]
    weights = [(constant(s.kernel), constant(s.bias)) for s in generator.stages]

    def generate(latents: Any) -> Any:
        length = tf.sqrt(tf.reduce_sum(tf.square(latents), axis=1, keepdims=True))
        x = latents * (math.sqrt(latent_dim) / tf.maximum(length, 1e-6))
        style = tf.nn.leaky_relu(apply(style_of, x), SLOPE)
        scales_and_shifts = iter(tf.split(apply(modulate, style)[:, None, None, :], widths, axis=3))
        for stage, (kernel, bias) in zip(generator.stages, weights, strict=True):
            if stage.kind == "dense":
                x = tf.reshape(apply((kernel, bias), x), (-1, 4, 4, stage.bias.size // 16))
            elif stage.kind == "upsample_conv":
                n, size, width = tf.shape(x)[0], 2 * x.shape[1], stage.bias.size
                # TensorFlow's transposed convolution wants its filter as [height, width, out, in].
                filters = tf.transpose(kernel, (0, 1, 3, 2))
                x = tf.nn.conv2d_transpose(x, filters, (n, size, size, width), 2, "SAME") + bias
            else:
                x = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
            if stage.modulation:
                x = x * next(scales_and_shifts) + next(scales_and_shifts)
            if stage.activated:
                x = tf.nn.leaky_relu(x, SLOPE)
        return tf.tanh(x)

    return generate
