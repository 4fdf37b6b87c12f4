"""Augmentation of images for the discriminator: mirroring and small shifts.

Photos and generated images get the same augmentation. It leaves colours unchanged, so the generator learns true
colours. It cuts nothing out: a cut-out would hide most of a single apple.
"""

import keras
from keras import ops

from training.config import TrainingConfig
from training.model.replicas import Tensor, draw_rows


def augment(config: TrainingConfig, images: Tensor, noise: keras.random.SeedGenerator) -> Tensor:
    """Return `images` float32[N, S, S, 3], randomly mirrored and shifted as in `config`.

    Reflection at the border fills the gap: white fill left white edges in 88 of 512 images of a run on photos of
    shelves and orchards. Each image is one product Y x X with 0/1 matrices that select its rows and columns:
    differentiable, and static in shape for XLA.
    """
    batch, size = ops.shape(images)[0], images.shape[1]
    rows = columns = ops.broadcast_to(ops.arange(size, dtype="int32"), (batch, size))
    if config.flip:
        is_mirrored = draw_rows(keras.random.uniform, (batch, 1), seed=noise) < 0.5
        columns = ops.where(is_mirrored, size - 1 - columns, columns)
    if config.translate_fraction > 0 and config.translate_probability > 0:
        max_shift = round(size * config.translate_fraction)
        draws = draw_rows(keras.random.uniform, (batch, 1), seed=noise)
        is_shifted = ops.cast(draws < config.translate_probability, "int32")
        shift_x = draw_rows(keras.random.randint, (batch, 1), -max_shift, max_shift + 1, seed=noise)
        shift_y = draw_rows(keras.random.randint, (batch, 1), -max_shift, max_shift + 1, seed=noise)
        columns, rows = columns + is_shifted * shift_x, rows + is_shifted * shift_y
    select_rows = ops.one_hot(_reflect(rows, size), size, dtype=images.dtype)
    select_columns = ops.one_hot(_reflect(columns, size), size, dtype=images.dtype)
    shifted_rows = ops.einsum("nyh,nhwc->nywc", select_rows, images)
    return ops.einsum("nxw,nywc->nyxc", select_columns, shifted_rows)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Return `index` reflected at both borders: -1 becomes 0."""
    index = ops.where(index < 0, -1 - index, index)
    return ops.where(index >= size, 2 * size - 1 - index, index)
