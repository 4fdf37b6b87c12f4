import numpy as np
import pytest

from serving.rendering.renderer import slerp


def latent(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_angle_of_slerp_grows_evenly(t):
    assert slerp(latent(0.5), latent(2.5), t) == pytest.approx(latent(0.5 + 2 * t), rel=1e-5)
