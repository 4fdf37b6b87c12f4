"""The Keras generator with the weights of an exported version.

An export folds normalisation into the weights, and turns each 3x3 kernel of an upsampling into 4x4. Both are linear,
so the inverse is exact up to rounding: images differ by at most 1/255.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from training.model.networks import NEAREST, UpsampleConv, build_generator


def newest_version(model: Path) -> Path:
    """Return the folder of the newest version in the model folder `model`."""
    return max((p for p in model.iterdir() if p.name.isdecimal()), key=lambda folder: int(folder.name))


def network_constants(version: Path) -> list[NDArray[np.float32]]:
    """Return all kernels and biases of `version`, from the dense layer."""
    graph = tf.saved_model.load(str(version)).signatures["serving_default"].graph.as_graph_def()
    for function in graph.library.function:
        if any(node.op == "Conv2DBackpropInput" for node in function.node_def):
            weights = [node for node in function.node_def if node.op == "Const" and node.name.startswith("Const")]
            return [tf.make_ndarray(node.attr["value"].tensor) for node in weights]
    raise ValueError(f"{version} has no function with the generator's network.")


def keras_generator(version: Path) -> keras.Model:
    """Return a Keras generator whose images equal those of `version`."""
    arrays = network_constants(version)
    dense, *upsamplings, _ = arrays[::2]
    generator = build_generator(len(dense), (dense.shape[1] // 16, *(kernel.shape[-1] for kernel in upsamplings)))
    weights = iter(arrays)
    shift: Any = None
    for layer in generator.layers:
        match layer:
            case layers.Dense():
                kernel, shift = next(weights), next(weights)
                layer.set_weights([kernel])
            case UpsampleConv():
                kernel, shift = next(weights), next(weights)
                inverse = np.linalg.pinv(NEAREST.astype(np.float64))
                layer.set_weights([np.einsum("ay,bx,yxio->abio", inverse, inverse, kernel)])
            case layers.Conv2D():
                layer.set_weights([next(weights), next(weights)])
            case layers.BatchNormalization():
                ones = np.ones(layer.gamma.shape, np.float32)
                # The bias of the dense layer repeats the normalisation's channels for each pixel.
                channels = shift.reshape(-1, ones.size)
                if not np.allclose(channels, channels[0], atol=1e-5):
                    raise ValueError(f"{layer.name} of {version} is not a normalisation.")
                layer.set_weights([ones * np.sqrt(1 + layer.epsilon), channels[0], 0 * ones, ones])
    return generator
