"""How far a set of generated pictures is from a set of photos, as distances between their features."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]  # [N, D]
Sums = NDArray[np.float64]

SUBSETS = 50
SUBSET_SIZE = 500
NEAREST_AT_ONCE = 512


def frechet_distance(real: Features, generated: Features) -> float:
    """Return the FID (Heusel et al. 2017, equation 6) of two sets of features.

    Biased by the sample size: compare only figures of the same number of pictures.
    """
    wide_real, wide_generated = real.astype(np.float64), generated.astype(np.float64)
    covariance_real, covariance_generated = np.cov(wide_real, rowvar=False), np.cov(wide_generated, rowvar=False)
    # trace((A B)^1/2) = trace((A^1/2 B A^1/2)^1/2), whose inner matrix is symmetric: eigh is enough, and real.
    values, vectors = np.linalg.eigh(covariance_real)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariance_generated @ root)
    difference = wide_real.mean(axis=0) - wide_generated.mean(axis=0)
    traces = np.trace(covariance_real) + np.trace(covariance_generated)
    return float(difference @ difference + traces - 2.0 * np.sqrt(inner.clip(0)).sum())


def kernel_distance(
    real: Features, generated: Features, *, seed: int = 0, subsets: int = SUBSETS
) -> tuple[float, float]:
    """Return the KID (Binkowski et al. 2018, section 4.1) and its standard deviation over `subsets` subsets.

    Unbiased: near 0, also below it, for two halves of one set. Trust it below 3,000 pictures, where the FID's
    covariance of 1,280 features is poorly known. Subsets have SUBSET_SIZE pictures, or three quarters of the smaller
    set: a subset that is the whole set would have no deviation.
    """
    rng = np.random.default_rng(seed)
    size = min(SUBSET_SIZE, 3 * min(len(real), len(generated)) // 4)
    distances = [
        _squared_mmd(real[rng.choice(len(real), size, False)], generated[rng.choice(len(generated), size, False)])
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(x: Features, y: Features) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy under the kernel (x . y / D + 1)^3."""

    def kernel(a: Sums, b: Sums) -> Sums:
        products: Sums = (a @ b.T / a.shape[1] + 1.0) ** 3
        return products

    def mean_off_diagonal(k: Sums) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    a, b = x.astype(np.float64), y.astype(np.float64)
    return mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2.0 * float(kernel(a, b).mean())


def nearest(points: Features, among: Features) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return for each row of `points` the nearest row of `among`, and its distance: the root of the mean square.

    Memory grows with NEAREST_AT_ONCE times the rows of `among`, however many `points` there are.
    """
    middle = among.mean(axis=0)  # near it the products are small, and little is lost to cancellation
    centred = among - middle
    squares = (centred**2).sum(axis=1)
    parts = range(0, len(points), NEAREST_AT_ONCE)
    found = np.concatenate(
        [(squares - 2.0 * (points[i : i + NEAREST_AT_ONCE] - middle) @ centred.T).argmin(axis=1) for i in parts]
    )
    differences = [points[i : i + NEAREST_AT_ONCE] - among[found[i : i + NEAREST_AT_ONCE]] for i in parts]
    return found, np.sqrt(np.concatenate([(part**2).mean(axis=1) for part in differences]))
