"""What the discriminator's pictures go through, real and generated alike: mirroring, small shifts and zooms.

Colour is left alone (it is what the article lost), and nothing is cut out (it would hide most of a single apple).
"""

from typing import Any

import keras
from keras import ops

from training.replicas import draw_rows

Tensor = Any


def augment(
    images: Tensor,
    seed: keras.random.SeedGenerator,
    *,
    flip: bool,
    translate_fraction: float,
    zoom_deviation: float,
    probability: Tensor,
) -> Tensor:
    """Mirror half of `images` (float32[N, S, S, 3], in [-1, 1]); shift and zoom some of them, filled with white.

    A picture is shifted and zoomed with `probability`, a scalar: by up to `translate_fraction` of its side, and by a
    factor whose logarithm is normal with `zoom_deviation`. Below 0.8 or so the generator cannot mistake what is done
    to the pictures for what they show (Karras et al. 2020, "Training GANs with Limited Data", section 2.2).

    Each picture is one product Y x X with matrices that pick its rows and columns, linearly between two of them:
    differentiable, static in shape for XLA, and a column picked from outside the picture is zero. Taking white as
    zero makes the border white.
    """
    batch, size = ops.shape(images)[0], images.shape[1]
    centre = 0.5 * (size - 1)
    columns = ops.broadcast_to(ops.arange(size, dtype="float32") - centre, (batch, size))  # where each is picked
    rows = columns
    if flip:
        columns = ops.where(draw_rows(keras.random.uniform, (batch, 1), seed=seed) < 0.5, -columns, columns)
    chosen = ops.cast(draw_rows(keras.random.uniform, (batch, 1), seed=seed) < probability, "float32")
    if zoom_deviation > 0:
        zoom = ops.exp(chosen * zoom_deviation * draw_rows(keras.random.normal, (batch, 1), seed=seed))
        columns, rows = columns * zoom, rows * zoom
    if translate_fraction > 0:
        reach = round(size * translate_fraction)
        for_columns, for_rows = (
            draw_rows(keras.random.randint, (batch, 1), -reach, reach + 1, seed=seed) for _ in ("columns", "rows")
        )
        columns = columns + chosen * ops.cast(for_columns, "float32")
        rows = rows + chosen * ops.cast(for_rows, "float32")
    picked = ops.einsum("nyh,nhwc->nywc", _pick(rows + centre, size), images - 1.0)
    return ops.einsum("nxw,nywc->nyxc", _pick(columns + centre, size), picked) + 1.0


def _pick(places: Tensor, size: int) -> Tensor:
    """Return the matrices float32[N, S, size] that interpolate at `places` float32[N, S], in pixels."""
    return ops.relu(1.0 - ops.abs(places[:, :, None] - ops.arange(size, dtype="float32")))
