"""What the discriminator's pictures go through, real and generated alike: mirroring and small shifts.

Colour is left alone (it is what the article lost), and nothing is cut out (it would hide most of a single apple).
"""

from typing import Any

import keras
from keras import ops

from training.model.replicas import draw_rows

Tensor = Any


def augment(
    images: Tensor,
    seed: keras.random.SeedGenerator,
    *,
    flip: bool,
    translate_fraction: float,
    translate_probability: float,
) -> Tensor:
    """Mirror half of `images` (float32[N, S, S, 3], in [-1, 1]) and shift some of them, filled with white.

    Each picture is one product Y x X with 0/1 matrices that pick its rows and columns: differentiable, static in
    shape for XLA, and a column picked from outside the picture is zero. Taking white as zero makes the border white.
    """
    batch, size = ops.shape(images)[0], images.shape[1]
    columns = ops.broadcast_to(ops.arange(size, dtype="int32"), (batch, size))
    rows = columns
    if flip:
        mirrored = draw_rows(keras.random.uniform, (batch, 1), seed=seed) < 0.5
        columns = ops.where(mirrored, size - 1 - columns, columns)
    if translate_fraction > 0 and translate_probability > 0:
        reach = round(size * translate_fraction)
        shifted = ops.cast(draw_rows(keras.random.uniform, (batch, 1), seed=seed) < translate_probability, "int32")
        columns = columns + shifted * draw_rows(keras.random.randint, (batch, 1), -reach, reach + 1, seed=seed)
        rows = rows + shifted * draw_rows(keras.random.randint, (batch, 1), -reach, reach + 1, seed=seed)
    pick_rows = ops.one_hot(rows, size, dtype=images.dtype)
    pick_columns = ops.one_hot(columns, size, dtype=images.dtype)
    picked = ops.einsum("nyh,nhwc->nywc", pick_rows, images - 1.0)
    return ops.einsum("nxw,nywc->nyxc", pick_columns, picked) + 1.0
