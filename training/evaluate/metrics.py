"""Distances between the features of images and photos: FID, KID, nearest."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]  # [N, D]
Sums = NDArray[np.float64]

SUBSETS = 50
SUBSET_SIZE = 500
NEAREST_BATCH = 512


def frechet_distance(real: Features, generated: Features) -> float:
    """Return the FID (Heusel et al. 2017, equation 6), whose bias depends on the sample size."""
    x, y = real.astype(np.float64), generated.astype(np.float64)
    covariance_real, covariance_generated = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # trace((A B)^1/2) = trace((A^1/2 B A^1/2)^1/2). The inner matrix is symmetric, so eigh gives real eigenvalues.
    values, vectors = np.linalg.eigh(covariance_real)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariance_generated @ root)
    difference = x.mean(axis=0) - y.mean(axis=0)
    traces = np.trace(covariance_real) + np.trace(covariance_generated)
    return float(difference @ difference + traces - 2.0 * np.sqrt(inner.clip(0)).sum())


def kernel_distance(real: Features, generated: Features, *, subsets: int = SUBSETS) -> tuple[float, float]:
    """Return the KID (Binkowski et al. 2018, section 4.1) and its deviation.

    The standard deviation is over `subsets` subsets. KID is unbiased: two halves of one set give about 0, or slightly
    less. It is reliable below 3,000 images, where FID cannot estimate its covariance of 1,280 features. A subset has
    SUBSET_SIZE images, or three quarters of the smaller set: subsets equal to the set would have no deviation.
    """
    rng = np.random.default_rng(0)
    size = min(SUBSET_SIZE, 3 * min(len(real), len(generated)) // 4)
    distances = [
        _squared_mmd(real[rng.choice(len(real), size, False)], generated[rng.choice(len(generated), size, False)])
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(x: Features, y: Features) -> float:
    """Return the unbiased squared maximum mean discrepancy. The kernel is (x . y / D + 1)^3."""

    def kernel(a: Sums, b: Sums) -> Sums:
        products: Sums = (a @ b.T / a.shape[1] + 1.0) ** 3
        return products

    def mean_off_diagonal(k: Sums) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    a, b = x.astype(np.float64), y.astype(np.float64)
    return mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2.0 * float(kernel(a, b).mean())


def find_nearest(points: Features, among: Features) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return each point's nearest row of `among`, and its RMS distance."""
    mean = among.mean(axis=0)  # subtracted, because small values lose less to cancellation
    centred = among - mean
    squares = (centred**2).sum(axis=1)
    batches = [points[start : start + NEAREST_BATCH] for start in range(0, len(points), NEAREST_BATCH)]
    rows = [(squares - 2.0 * (batch - mean) @ centred.T).argmin(axis=1) for batch in batches]
    distances = [((batch - among[nearest]) ** 2).mean(axis=1) for batch, nearest in zip(batches, rows, strict=True)]
    return np.concatenate(rows), np.sqrt(np.concatenate(distances))
