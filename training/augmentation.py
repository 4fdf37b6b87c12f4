"""What the discriminator's pictures go through, real and generated alike: mirroring and small shifts.

Colour is left alone (it is what the article lost), and nothing is cut out (it would hide most of a single apple).
"""

from typing import Any

import keras
from keras import ops

Tensor = Any


def augment(
    images: Tensor,
    seed: keras.random.SeedGenerator,
    *,
    flip: bool,
    translate_fraction: float,
    translate_probability: Tensor,
) -> Tensor:
    """Mirror half of `images` (float32[N, S, S, 3], in [-1, 1]) and shift some of them, filled with white.

    A picture is shifted with `translate_probability`, a scalar, by up to `translate_fraction` of its side.

    Each picture is one product Y x X with 0/1 matrices that pick its rows and columns: differentiable, static in
    shape for XLA, and a column picked from outside the picture is zero. Taking white as zero makes the border white.
    """
    batch, size = ops.shape(images)[0], images.shape[1]
    columns = ops.broadcast_to(ops.arange(size, dtype="int32"), (batch, size))
    rows = columns
    if flip:
        mirrored = keras.random.uniform((batch, 1), seed=seed) < 0.5
        columns = ops.where(mirrored, size - 1 - columns, columns)
    if translate_fraction > 0:
        reach = round(size * translate_fraction)
        shifted = ops.cast(keras.random.uniform((batch, 1), seed=seed) < translate_probability, "int32")
        columns = columns + shifted * keras.random.randint((batch, 1), -reach, reach + 1, seed=seed)
        rows = rows + shifted * keras.random.randint((batch, 1), -reach, reach + 1, seed=seed)
    pick_rows = ops.one_hot(rows, size, dtype=images.dtype)
    pick_columns = ops.one_hot(columns, size, dtype=images.dtype)
    picked = ops.einsum("nyh,nhwc->nywc", pick_rows, images - 1.0)
    return ops.einsum("nxw,nywc->nyxc", pick_columns, picked) + 1.0
