"""The networks, and the augmentation of their images."""

import keras
import numpy as np
import pytest

from benchmarks.stock_layers import in_stock_layers
from training.config import TrainingConfig
from training.model.augmentation import augment
from training.model.latents import sample_latents
from training.model.networks import UpsampleConv, build_discriminator, build_generator


def upsample(images, taps):
    """Upsample float[N, H, W, C] with NumPy: nearest, then a filter.

    `taps` are the weights of the filter; the image is padded with zeros.
    """
    images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(2, axis=1).repeat(2, axis=2)
    for axis in (1, 2):
        images = sum(weight * np.roll(images, shift, axis) for shift, weight in zip((-1, 0, 1), taps, strict=True))
    return images


@pytest.mark.parametrize(("smooth", "taps"), [(False, (0, 1, 0)), (True, (0.25, 0.5, 0.25))])
def test_upsample_conv_equals_upsampling_and_a_3x3_convolution(smooth, taps):
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    layer = UpsampleConv(7, smooth=smooth)
    actual = layer(images)
    convolution = keras.layers.Conv2D(7, 3, padding="same", use_bias=False)
    convolution.build((None, 20, 16, 5))
    convolution.set_weights(layer.get_weights())
    expected = convolution(upsample(images, taps))[:, 4:-4, 4:-4]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


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


def test_stock_layers_of_the_benchmark_generate_equal_images():
    generator, latents = build_generator(16, (8, 8, 4)), sample_latents(np.arange(3), 16)
    np.testing.assert_allclose(in_stock_layers(generator)(latents), generator(latents), atol=1e-5)


def test_shift_frequency_matches_its_probability():
    images = np.random.default_rng(0).uniform(-1, 0.5, (640, 16, 16, 3)).astype(np.float32)
    config = TrainingConfig(flip=False, translate_fraction=0.25, translate_probability=0.3)
    augmented = np.asarray(augment(config, images, keras.random.SeedGenerator(1)))
    is_shifted = np.abs(augmented - images).max((1, 2, 3)) > 1e-6
    assert 0.2 < is_shifted.mean() < 0.4
