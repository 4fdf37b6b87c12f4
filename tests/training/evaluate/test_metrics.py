import numpy as np
import pytest

from training.evaluate.metrics import NEAREST_AT_ONCE, frechet_distance, kernel_distance, nearest


def normal(n: int, mean: float = 0.0, deviation: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, (n, 8))


def test_the_frechet_distance_of_a_set_to_itself_is_0():
    assert frechet_distance(normal(500), normal(500)) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_two_normal_distributions_is_the_formula():
    # |m1 - m2|^2 + sum (s1 - s2)^2 over 8 independent dimensions
    found = frechet_distance(normal(200_000), normal(200_000, mean=0.5, deviation=2.0, seed=1))
    assert found == pytest.approx(8 * 0.5**2 + 8 * 1.0**2, rel=0.02)


def test_the_frechet_distance_is_symmetric():
    a, b = normal(500), normal(500, mean=1.0, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_the_kernel_distance_of_two_samples_of_one_distribution_is_0_within_its_deviation():
    mean, deviation = kernel_distance(normal(2000), normal(2000, seed=1))
    assert abs(mean) < 2 * deviation


def test_the_kernel_distance_is_unbiased_in_small_samples():
    found = [kernel_distance(normal(60, seed=2 * i), normal(60, seed=2 * i + 1))[0] for i in range(60)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_the_kernel_distance_grows_with_the_difference():
    near, far = (kernel_distance(normal(1000), normal(1000, mean=m, seed=1))[0] for m in (0.2, 0.6))
    assert 0 < near < far


def test_the_kernel_distance_is_the_same_on_every_call():
    assert kernel_distance(normal(300), normal(300, seed=1)) == kernel_distance(normal(300), normal(300, seed=1))


def test_the_nearest_rows_are_those_of_a_plain_search_however_many_there_are():
    points, among = normal(NEAREST_AT_ONCE + 100) + 1000, normal(300, seed=1) + 1000  # far from 0, where sums cancel
    differences = np.sqrt(((points[:, None] - among) ** 2).mean(axis=2))
    rows, distances = nearest(points.astype(np.float32), among.astype(np.float32))
    assert rows.tolist() == differences.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, differences.min(axis=1), rtol=1e-3)
