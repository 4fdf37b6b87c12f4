"""The networks, and the augmentation of their images."""

import keras
import numpy as np

from benchmarks.stock_layers import in_stock_layers
from training.config import TrainingConfig
from training.model.augmentation import augment
from training.model.latents import sample_latents
from training.model.networks import build_discriminator, build_generator


def test_image_is_equal_when_only_the_latent_length_differs():
    generator = build_generator(16, (32, 16))
    latents = sample_latents(np.arange(4), 16)
    np.testing.assert_allclose(generator(latents), generator(7 * latents), atol=1e-5)


def test_minibatch_deviation_is_0_when_all_images_are_equal():
    discriminator = build_discriminator(32, (8, 8, 8))
    spread = keras.Model(discriminator.input, discriminator.get_layer("minibatch_standard_deviation").output)
    varied = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    alike = np.repeat(varied[:1], 4, axis=0)
    assert np.asarray(spread(alike))[..., -1].max() < 1e-3 < np.asarray(spread(varied))[..., -1].min()


def test_generator_equals_stock_layers_that_upsample_and_convolve():
    generator, latents = build_generator(16, (8, 8, 4)), sample_latents(np.arange(3), 16)
    np.testing.assert_allclose(in_stock_layers(generator)(latents), generator(latents), atol=1e-5)


def test_shift_frequency_matches_its_probability():
    images = np.random.default_rng(0).uniform(-1, 0.5, (640, 16, 16, 3)).astype(np.float32)
    config = TrainingConfig(flip=False, translate_fraction=0.25, translate_probability=0.3)
    augmented = np.asarray(augment(config, images, keras.random.SeedGenerator(1)))
    assert 0.2 < (np.abs(augmented - images).max((1, 2, 3)) > 1e-6).mean() < 0.4
