import numpy as np

from benchmarks.stock_layers import in_stock_layers
from training.model.latents import sample_latents
from training.model.networks import build_generator


def test_stock_layers_generate_equal_images():
    generator, latents = build_generator(16, (8, 8, 4)), sample_latents(np.arange(3), 16)
    np.testing.assert_allclose(in_stock_layers(generator)(latents), generator(latents), atol=1e-5)
