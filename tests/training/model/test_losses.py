import math

import numpy as np
import pytest

from training.model.losses import approximate_r1, discriminator_loss, generator_loss


def logits(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_logistic_loss_is_log_2_per_logit_when_logits_are_0():
    assert float(generator_loss(logits(0, 0))) == pytest.approx(math.log(2))
    assert float(discriminator_loss(logits(0, 0), logits(0, 0))) == pytest.approx(2 * math.log(2))


def test_losses_are_finite_when_logits_are_extreme():
    assert float(generator_loss(logits(-1e4))) == pytest.approx(1e4)
    assert float(discriminator_loss(logits(-1e4), logits(1e4))) == pytest.approx(2e4)


def test_approximate_r1_is_half_gamma_times_the_squared_gradient():
    rng = np.random.default_rng(0)
    gradient, x = rng.normal(size=50), rng.normal(size=(40_000, 50))
    noisy = x + 0.05 * rng.normal(size=x.shape)
    penalty = float(approximate_r1(x @ gradient, noisy @ gradient, gamma=0.2, sigma=0.05))
    assert penalty == pytest.approx(0.5 * 0.2 * (gradient @ gradient), rel=0.05)
