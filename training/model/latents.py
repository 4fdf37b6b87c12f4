"""ringo-latent/1: what a seed means. A frozen specification; a change of it is a new name, never an edit.

A seed is an integer from 0 to 2^63 - 1; its latent has `latent_dim` numbers, number `index` being made of the seed and
the index alone, in unsigned 32-bit arithmetic:

1. For draw = 0 and 1, hash (x, y, z) = (seed mod 2^32, seed div 2^32, 2 index + draw) with PCG3D
   (Jarzynski and Olano 2020, "Hash Functions for GPU Rendering", Journal of Computer Graphics Techniques 9.3).
2. The two hashes are six words, twelve halves of 16 bits: twelve uniforms on 0..65535. Their sum less its mean,
   2 sum - 12 * 65535, is an integer below 2^20 in size, so it is exact in float32.
3. Divided by 2^17 it has mean 0, variance 1 - 2^-32, and lies within +-6; its distribution function is nowhere
   further than 0.0024 from the standard normal's.

No step rounds, so NumPy, TensorFlow, XLA, JAX and plain Python agree to the last bit. The code below is the one that
runs in all of them; docs/ringo-latent-1.md has it in ten lines of plain Python, and test vectors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "ringo-latent/1"
MAX_SEED = 2**63 - 1
PARALLEL = 1e-6  # radians: below, arccos of a cosine near 1 is mostly rounding, 1e-8 in float64

Array = Any  # of NumPy, TensorFlow or JAX


def sample_latents(seeds: NDArray[np.int64], latent_dim: int) -> NDArray[np.float32]:
    """Return the latents float32[N, latent_dim] of `seeds` int64[N], each from 0 to MAX_SEED."""
    wide = np.asarray(seeds, np.int64)
    low, high = (wide & 0xFFFFFFFF).astype(np.uint32), (wide >> 32).astype(np.uint32)
    latents: NDArray[np.float32] = standardise(
        sum_of_uniforms(low, high, latent_dim, np.right_shift).astype(np.float32)
    )
    return latents


def slerp(first: NDArray[np.float32], last: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return `count` latents float32[count, latent_dim] on the way from `first` to `last`, both float32[latent_dim].

    Equal steps of angle on a great circle (Shoemake 1985, "Animating Rotation with Quaternion Curves", section 3.3):
    the straight way would leave the shell on which normal latents lie. Nearly parallel latents have no great circle
    that could be computed, and the straight way between them is the same to rounding. Not part of ringo-latent/1.

    Raises:
        ValueError: the latents are opposite, so that no way is the shortest.
    """
    a, b = first.astype(np.float64), last.astype(np.float64)
    angle = np.arccos(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
    t = np.linspace(0.0, 1.0, count)[:, None]
    if np.pi - angle < PARALLEL:
        raise ValueError("the latents are opposite: no way between them is the shortest")
    if angle < PARALLEL:
        return ((1 - t) * a + t * b).astype(np.float32)
    return ((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)).astype(np.float32)


def sum_of_uniforms(low: Array, high: Array, latent_dim: int, right_shift: Callable[[Array, Any], Array]) -> Array:
    """Return uint32[N, latent_dim], each the sum of twelve integers from 0 to 65535: steps 1 and 2.

    `low` and `high` are the seeds' halves, uint32[N], arrays of any library whose `right_shift` is given.
    """
    z = np.arange(2 * latent_dim, dtype=np.uint32).reshape(1, latent_dim, 2)  # 2 index + draw
    total: Array = 0
    for word in pcg3d(low[:, None, None], high[:, None, None], z, right_shift):
        total = (word & np.uint32(0xFFFF)) + right_shift(word, np.uint32(16)) + total
    return total[:, :, 0] + total[:, :, 1]


def standardise(sums: Array) -> Array:
    """Return (2 sums - 12 * 65535) / 2^17 for `sums` float32: step 3, exact in float32."""
    return sums * np.float32(2**-16) - np.float32(12 * 65535 / 2**17)


def pcg3d(x: Array, y: Array, z: Array, right_shift: Callable[[Array, Any], Array]) -> tuple[Array, Array, Array]:
    """Return three words uint32 of the broadcast shape of x, y, z, also uint32."""
    a, c, half = np.uint32(1664525), np.uint32(1013904223), np.uint32(16)
    x, y, z = _mix(x * a + c, y * a + c, z * a + c)
    return _mix(x ^ right_shift(x, half), y ^ right_shift(y, half), z ^ right_shift(z, half))


def _mix(x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    x = x + y * z
    y = y + z * x
    z = z + x * y
    return x, y, z
