"""The losses, as pure functions of logits (float32[N], unbounded; higher means more real)."""

from typing import Any

from keras import ops

Tensor = Any


def generator_loss(generated_logits: Tensor) -> Tensor:
    """Return the non-saturating loss of the generator, a scalar (Goodfellow et al. 2014, section 3)."""
    return ops.mean(ops.softplus(-generated_logits))


def discriminator_loss(real_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """Return the logistic loss of the discriminator, a scalar (Goodfellow et al. 2014, equation 1)."""
    return ops.mean(ops.softplus(-real_logits)) + ops.mean(ops.softplus(generated_logits))


def approximate_r1(real_logits: Tensor, noisy_logits: Tensor, *, gamma: float, sigma: float) -> Tensor:
    """Return R1 (Mescheder et al. 2018) by finite differences, a scalar.

    `noisy_logits` belong to the same photos plus normal noise of deviation `sigma`. To first order
    E[(D(x) - D(x + sigma n))^2] = sigma^2 |grad D(x)|^2, so this is gamma / 2 |grad D(x)|^2 without a second-order
    gradient, and one code serves every backend.
    """
    return 0.5 * gamma / sigma**2 * ops.mean(ops.square(real_logits - noisy_logits))
