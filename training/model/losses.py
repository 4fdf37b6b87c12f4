"""The losses, as pure functions of logits (unbounded; higher means more real)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

Tensor = Any


@dataclass(frozen=True)
class Losses:
    """The losses of both networks and the score to watch; all map logits to a float32 scalar."""

    generator: Callable[[Any], Tensor]  # of the generated images' logits
    discriminator: Callable[[Any, Any], Tensor]  # of the photos' logits and the generated images'
    score: Callable[[Any], Tensor]  # how real the discriminator finds a batch


def generator_loss(generated_logits: Tensor) -> Tensor:
    """Return the non-saturating loss of the generator, a scalar (Goodfellow et al. 2014, section 3)."""
    return ops.mean(ops.softplus(-generated_logits))


def discriminator_loss(real_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """Return the logistic loss of the discriminator, a scalar (Goodfellow et al. 2014, equation 1)."""
    return ops.mean(ops.softplus(-real_logits)) + ops.mean(ops.softplus(generated_logits))


def hinge_generator_loss(generated_logits: Sequence[Tensor]) -> Tensor:
    """Return minus the mean logit, averaged over heads (Lim and Ye 2017)."""
    return -mean_logit(generated_logits)


def hinge_discriminator_loss(real_logits: Sequence[Tensor], generated_logits: Sequence[Tensor]) -> Tensor:
    """Return the hinge loss, averaged over heads (Lim and Ye 2017): 2 where all logits are 0."""
    heads = zip(real_logits, generated_logits, strict=True)
    losses = [ops.mean(ops.relu(1.0 - real)) + ops.mean(ops.relu(1.0 + generated)) for real, generated in heads]
    return sum(losses) / len(losses)


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean logit, averaged over heads."""
    return sum(ops.mean(head) for head in logits) / len(logits)


def approximate_r1(real_logits: Tensor, noisy_logits: Tensor, *, gamma: float, sigma: float) -> Tensor:
    """Return R1 (Mescheder et al. 2018) by finite differences, a scalar.

    `noisy_logits` belong to the same photos plus normal noise of deviation `sigma`. To first order
    E[(D(x) - D(x + sigma n))^2] = sigma^2 |grad D(x)|^2, so this is gamma / 2 |grad D(x)|^2 without a second-order
    gradient, and one code serves every backend.
    """
    return 0.5 * gamma / sigma**2 * ops.mean(ops.square(real_logits - noisy_logits))


LOGISTIC = Losses(generator_loss, discriminator_loss, lambda logits: ops.mean(ops.sigmoid(logits)))
HINGE = Losses(hinge_generator_loss, hinge_discriminator_loss, mean_logit)
