"""Spherical interpolation of latents."""

import math

import numpy as np
import numpy.typing as npt

Latent = npt.NDArray[np.float32]


def slerp(start: Latent, end: Latent, t: float) -> Latent:
    """Return the latent float32[D] at `t` between `start` and `end`.

    At 0 and 1 it is `start` and `end`, bit for bit. Halfway on a straight line a latent would be shorter than those of
    the training (White 2016, "Sampling Generative Networks"). Sums are exact before they are rounded (math.fsum): the
    order of summation, which differs between processors, changes no image.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    cosine = _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if angle == 0.0:
        return start
    sine = math.sin(angle)
    mixed: Latent = (math.sin((1.0 - t) * angle) / sine * a + math.sin(t * angle) / sine * b).astype(np.float32)
    return mixed


def _dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return math.fsum(a * b)
