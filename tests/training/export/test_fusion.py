import numpy as np

from training.export.fusion import build_function, fuse
from training.model.latents import sample_latents
from training.model.networks import build_generator


def test_fused_generator_equals_the_generator():
    rng, generator = np.random.default_rng(0), build_generator(16, (24, 16, 8))
    for variable in generator.weights:  # initial values are neutral
        positive = "variance" in variable.path
        variable.assign(rng.uniform(0.5, 2.0, variable.shape) if positive else rng.normal(0.0, 0.2, variable.shape))
    latents, fused = sample_latents(np.arange(32), 16), build_function(fuse(generator), 16)
    expected = np.asarray(generator(latents, training=False))
    assert expected.std() > 0.1  # a uniform grey would prove nothing
    np.testing.assert_allclose(fused(latents), expected, atol=2e-5)
