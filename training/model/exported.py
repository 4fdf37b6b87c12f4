"""The generator of an exported model, as a network that can train."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.errors import TrainingError
from training.model.latents import sample_latents
from training.model.networks import NEAREST, UpsampleConv, build_generator


def load_exported(version: Path, config: TrainingConfig) -> keras.Model:
    """Return a generator with the images of a version, up to rounding.

    Export folds batch normalisation into the kernel before it. So each normalisation gets the mean and variance of its
    input for some seeds, and the scale and shift that add the exported bias to this input.
    Raises TrainingError if the folder `version` was not written by `export`, or with another `config`.
    """
    import tensorflow as tf

    generator = build_generator(config.latent_dim, config.generator_channels)
    try:
        _restore(generator, _read_constants(version))
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise TrainingError(
            f"{version} is not a model that `export` wrote with its config.json; set --from to another one, "
            "such as models/apple."
        ) from error
    return generator


def _read_constants(version: Path) -> list[NDArray[np.float32]]:
    """Return kernel and bias of each operation of the fused generator."""
    import tensorflow as tf

    graph = tf.saved_model.load(str(version)).signatures["serving_default"].graph.as_graph_def()
    for function in graph.library.function:
        if any(node.op == "Tanh" for node in function.node_def):
            constants = (node for node in function.node_def if re.fullmatch(r"Const(_\d+)?", node.name))
            return [tf.make_ndarray(node.attr["value"].tensor) for node in constants]
    raise ValueError("the graph has no generator")


def _restore(generator: keras.Model, constants: list[NDArray[np.float32]]) -> None:
    """Set the weights of `generator`, layer by layer. Raises ValueError."""
    pairs = iter(zip(constants[::2], constants[1::2], strict=True))
    x: Any = sample_latents(np.arange(64), generator.input_shape[1])
    bias: NDArray[np.float32] = np.zeros(0, np.float32)
    for layer in generator.layers[1:]:
        if isinstance(layer, layers.BatchNormalization):
            inputs = ops.convert_to_numpy(x).astype(np.float64)
            mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
            # The bias of the dense layer repeats in each of the 4x4 pixels.
            layer.set_weights([np.sqrt(variance + layer.epsilon), mean + bias[: mean.size], mean, variance])
        elif layer.weights:
            kernel, bias = next(pairs, (bias, bias))  # a bias has no kernel's shape
            if isinstance(layer, UpsampleConv):
                inverse = np.linalg.pinv(NEAREST)
                kernel = np.einsum("ay,bx,yxio->abio", inverse, inverse, kernel)
            layer.set_weights([kernel, bias][: len(layer.weights)])
        x = layer(x)
