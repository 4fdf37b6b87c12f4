"""Images of a Keras generator: seeds to pixels, and image grids."""

from pathlib import Path

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from PIL import Image

from training.model.latents import sample_latents
from training.records import open_atomically

SAMPLING_BATCH = 16  # a batch of 64 would need 2.6 GiB at 256 px, more than training


def generate_images(generator: keras.Model, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return images uint8[N, S, S, 3] of `seeds` int64[N], as exported up to rounding."""
    return images_from_latents(generator, sample_latents(seeds, generator.input_shape[1]))


def images_from_latents(generator: keras.Model, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the images uint8[N, S, S, 3] of `latents` float32[N, latent_dim]."""
    batches = []
    for start in range(0, len(latents), SAMPLING_BATCH):
        images = generator(latents[start : start + SAMPLING_BATCH], training=False)
        pixels: NDArray[np.float32] = (ops.convert_to_numpy(images) + 1.0) * 127.5
        batches.append(pixels.round().clip(0, 255).astype(np.uint8))
    return np.concatenate(batches)


def image_grid(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Return `images` uint8[N, H, W, 3] as one grid. A row has `columns` images; the last one is filled with white."""
    n, height, width, _ = images.shape
    filled = np.pad(images, ((0, -n % columns), (0, 0), (0, 0), (0, 0)), constant_values=255)
    rows = filled.reshape(-1, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(-1, columns * width, 3))


def write_image(path: Path, image: Image.Image) -> None:
    """Write `image` to `path` as PNG, atomically. Raises OSError."""
    with open_atomically(path) as file:
        image.save(file, "PNG")
