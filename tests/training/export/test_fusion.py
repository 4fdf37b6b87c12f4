import numpy as np
import pytest

from training.export.fusion import build_function, fuse
from training.model.latents import sample_latents
from training.model.networks import build_generator

LATENT_DIM = 16


@pytest.fixture(scope="module")
def generator():
    """Return a generator without neutral initial values."""
    rng = np.random.default_rng(0)
    generator = build_generator(LATENT_DIM, (24, 16, 8))
    for variable in generator.weights:
        positive = "variance" in variable.path
        variable.assign(rng.uniform(0.5, 2.0, variable.shape) if positive else rng.normal(0.0, 0.2, variable.shape))
    return generator


def test_fused_generator_equals_the_generator(generator):
    latents = sample_latents(np.arange(32), LATENT_DIM)
    fused = build_function(fuse(generator), LATENT_DIM)
    expected = np.asarray(generator(latents, training=False))
    assert expected.std() > 0.1  # a uniform grey would prove nothing
    np.testing.assert_allclose(fused(latents), expected, atol=2e-5)
