import numpy as np
import pytest

from serving.rendering.renderer import slerp

rng = np.random.default_rng(0)
A, B = rng.normal(size=(2, 128)).astype(np.float32)


def angle(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_angle_of_slerp_grows_evenly(t):
    a, b = A / np.linalg.norm(A), B / np.linalg.norm(B)
    assert angle(a, slerp(a, b, t)) == pytest.approx(t * angle(a, b), rel=1e-5)
