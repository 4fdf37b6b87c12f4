"""Pictures of a Keras generator: seeds in, pixels out, and many of them in one grid."""

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from PIL import Image

from training.model.latents import sample_latents

AT_ONCE = 16  # pictures: 64 at once would take 2.6 GiB at 256 px, more than the training itself


def paint(generator: keras.Model, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the pictures uint8[N, S, S, 3] of `seeds`, as an exported model would show them up to rounding."""
    return paint_latents(generator, sample_latents(seeds, generator.input_shape[1]))


def paint_latents(generator: keras.Model, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the pictures uint8[N, S, S, 3] of `latents` float32[N, latent_dim]."""
    return np.concatenate([_paint(generator, latents[i : i + AT_ONCE]) for i in range(0, len(latents), AT_ONCE)])


def _paint(generator: keras.Model, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    images = generator(latents, training=False)
    pixels: NDArray[np.float32] = (ops.convert_to_numpy(images) + 1.0) * 127.5
    return pixels.round().clip(0, 255).astype(np.uint8)


def picture_grid(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Return `images` uint8[N, H, W, 3] side by side, `columns` in a row; N is a multiple of `columns`."""
    n, height, width, _ = images.shape
    rows = images.reshape(n // columns, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(n // columns * height, columns * width, 3))
