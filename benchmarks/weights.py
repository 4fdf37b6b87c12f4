"""The Keras generator with the weights of an exported version, for the sides that need layers and not a graph.

An export keeps no layers: normalisation is folded into the weights before it, and each kernel of 3x3 has become one of
4x4 or, for smooth upsampling in versions of before 2026-11-27, 6x6. Both ways are linear, so the way back is exact up
to rounding: pictures differ by 1/255 at most.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from training.config import TrainingConfig
from training.model.networks import NEAREST, UpsampleConv, build_generator

# By the size of a kernel: as training.model.networks.NEAREST, and the same behind its BLUR.
TAPS = {
    4: NEAREST.astype(np.float64),
    6: np.array([[0, 0, 1], [0, 1, 3], [1, 3, 3], [3, 3, 1], [3, 1, 0], [1, 0, 0]]) / 4,
}


def newest_version(model: Path) -> Path:
    """Return the folder of the newest version in the model folder `model`."""
    return max((p for p in model.iterdir() if p.name.isdecimal()), key=lambda folder: int(folder.name))


def keras_generator(version: Path) -> keras.Model:
    """Return latents float32[N, latent_dim] -> images float32[N, S, S, 3] in [-1, 1], as `version` paints."""
    config = TrainingConfig.from_json((version / "config.json").read_text(encoding="utf-8"))
    generator = build_generator(config.latent_dim, config.generator_channels)
    graph = tf.saved_model.load(str(version)).signatures["serving_default"]
    weights = iter([tensor.numpy() for tensor in graph.captured_inputs])  # kernel, bias, kernel, bias ...
    shift: Any = None
    for layer in generator.layers:
        match layer:
            case layers.Dense():
                kernel, shift = next(weights), next(weights)
                layer.set_weights([kernel])
            case UpsampleConv():
                kernel, shift = next(weights), next(weights)
                back = np.linalg.pinv(TAPS[len(kernel)])
                layer.set_weights([np.einsum("ay,bx,yxio->abio", back, back, kernel)])
            case layers.Conv2D():
                layer.set_weights([next(weights), next(weights)])
            case layers.BatchNormalization():
                ones = np.ones(layer.gamma.shape, np.float32)
                # A dense layer's bias repeats per pixel what follows it normalises per channel.
                channels = shift.reshape(-1, ones.size)
                if not np.allclose(channels, channels[0], atol=1e-5):
                    raise ValueError(f"{layer.name} of {version} is no normalisation.")
                layer.set_weights([ones * np.sqrt(1 + layer.epsilon), channels[0], 0 * ones, ones])
    return generator
