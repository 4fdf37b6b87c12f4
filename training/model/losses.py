"""The losses, as pure functions of logits (unbounded; higher means more real).

Heads are averaged by a stack: TensorFlow adds three or more terms in any order, also with op determinism.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

Tensor = Any


@dataclass(frozen=True)
class LossFunctions:
    """The losses of both networks and the logged score, all scalars."""

    generator: Callable[[Any], Tensor]  # takes the logits of generated images
    discriminator: Callable[[Any, Any], Tensor]  # takes the logits of photos and those of generated images
    score: Callable[[Any], Tensor]  # how real the discriminator finds a batch


def generator_loss(generated_logits: Tensor) -> Tensor:
    """Return the generator's non-saturating loss (Goodfellow et al. 2014, section 3)."""
    return ops.mean(ops.softplus(-generated_logits))


def discriminator_loss(real_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """Return the discriminator's logistic loss (Goodfellow et al. 2014, equation 1)."""
    return ops.mean(ops.softplus(-real_logits)) + ops.mean(ops.softplus(generated_logits))


def hinge_generator_loss(generated_logits: Sequence[Tensor]) -> Tensor:
    """Return minus the mean logit, averaged over heads (Lim and Ye 2017)."""
    return -mean_logit(generated_logits)


def hinge_discriminator_loss(real_logits: Sequence[Tensor], generated_logits: Sequence[Tensor]) -> Tensor:
    """Return the hinge loss, averaged over heads (Lim and Ye 2017). It is 2 where all logits are 0."""
    heads = zip(real_logits, generated_logits, strict=True)
    losses = [ops.mean(ops.relu(1.0 - real)) + ops.mean(ops.relu(1.0 + generated)) for real, generated in heads]
    return ops.mean(ops.stack(losses))


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean logit, averaged over heads."""
    return ops.mean(ops.stack([ops.mean(head) for head in logits]))


def approximate_r1(real_logits: Tensor, noisy_logits: Tensor, *, gamma: float, sigma: float) -> Tensor:
    """Return the R1 penalty (Mescheder et al. 2018) by finite differences.

    `noisy_logits` belong to the same photos plus normal noise of deviation `sigma`. To first order
    E[(D(x) - D(x + sigma n))^2] = sigma^2 |grad D(x)|^2, so the result is gamma / 2 |grad D(x)|^2. It needs no
    second-order gradient, so one code works on every backend.
    """
    return 0.5 * gamma / sigma**2 * ops.mean(ops.square(real_logits - noisy_logits))


LOGISTIC = LossFunctions(generator_loss, discriminator_loss, lambda logits: ops.mean(ops.sigmoid(logits)))
HINGE = LossFunctions(hinge_generator_loss, hinge_discriminator_loss, mean_logit)
