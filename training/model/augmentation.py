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
    """Mirror half of `images` (float32[N, S, S, 3]) and shift some of them, filled by reflection at the border.

    White fill left white edges in 88 of 512 images of a run on shelves and orchards. Each image is one product
    Y x X with 0/1 matrices that pick its rows and columns: differentiable, and static in shape for XLA.
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
    pick_rows = ops.one_hot(_reflect(rows, size), size, dtype=images.dtype)
    pick_columns = ops.one_hot(_reflect(columns, size), size, dtype=images.dtype)
    picked = ops.einsum("nyh,nhwc->nywc", pick_rows, images)
    return ops.einsum("nxw,nywc->nyxc", pick_columns, picked)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Return indices below 0 and from `size` on mirrored at the border, which is repeated: -1 is 0, `size` the last."""
    index = ops.where(index < 0, -1 - index, index)
    return ops.where(index >= size, 2 * size - 1 - index, index)
