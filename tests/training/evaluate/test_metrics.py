import numpy as np
import pytest

from training.evaluate.metrics import NEAREST_BATCH, find_nearest, frechet_distance, kernel_distance


def normal(n: int, mean: float = 0.0, deviation: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, (n, 8))


def test_frechet_distance_matches_the_formula_for_normal_sets():
    # |m1 - m2|^2 + sum (s1 - s2)^2 over 8 independent dimensions
    distance = frechet_distance(normal(200_000), normal(200_000, mean=0.5, deviation=2.0, seed=1))
    assert distance == pytest.approx(8 * 0.5**2 + 8 * 1.0**2, rel=0.02)


def test_kernel_distance_is_unbiased_when_samples_are_small():
    distances = [kernel_distance(normal(60, seed=2 * i), normal(60, seed=2 * i + 1))[0] for i in range(60)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(len(distances))


def test_kernel_distance_grows_with_the_difference():
    near, far = (kernel_distance(normal(300), normal(300, mean=m, seed=1))[0] for m in (0.2, 0.6))
    assert 0 < near < far


def test_nearest_rows_match_a_plain_search():
    # Far from 0, where cancellation is worst.
    points, among = normal(NEAREST_BATCH + 100) + 1000, normal(300, seed=1) + 1000
    differences = np.sqrt(((points[:, None] - among) ** 2).mean(axis=2))
    rows, distances = find_nearest(points.astype(np.float32), among.astype(np.float32))
    assert rows.tolist() == differences.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, differences.min(axis=1), rtol=1e-3)
