import keras
import numpy as np
import pytest

from training.config import IMAGE_SIZES, TrainingConfig
from training.model.latents import sample_latents
from training.model.networks import UpsampleConv, build_discriminator, build_generator


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_the_networks_fit_each_other_at_every_size(image_size):
    config = TrainingConfig(image_size=image_size)
    generator = build_generator(config.latent_dim, config.generator_channels)
    discriminator = build_discriminator(image_size, config.discriminator_channels)
    images = generator(sample_latents(np.arange(2), config.latent_dim))
    assert images.shape == (2, image_size, image_size, 3)
    assert discriminator(images).shape == (2,)


def doubled(pictures, taps):
    """Upsample float[N, H, W, C] as NumPy can: nearest, then a running mean weighted by `taps`; nought outside."""
    pictures = np.pad(pictures, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(2, axis=1).repeat(2, axis=2)
    for axis in (1, 2):
        pictures = sum(weight * np.roll(pictures, shift, axis) for shift, weight in zip((-1, 0, 1), taps, strict=True))
    return pictures


@pytest.mark.parametrize(("smooth", "taps"), [(False, (0, 1, 0)), (True, (0.25, 0.5, 0.25))])
def test_an_upsample_conv_is_upsampling_and_a_3x3_convolution(smooth, taps):
    pictures = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    joined = UpsampleConv(7, smooth=smooth)
    found = joined(pictures)
    convolution = keras.layers.Conv2D(7, 3, padding="same", use_bias=False)
    convolution.build((None, 20, 16, 5))
    convolution.set_weights(joined.get_weights())
    expected = convolution(doubled(pictures, taps))[:, 4:-4, 4:-4]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_last_upsampling_is_smooth_and_the_others_are_not():
    generator = build_generator(16, (32, 16, 8))
    assert [generator.get_layer(f"upsample_conv_{size}").smooth for size in (8, 16)] == [False, True]


def test_generated_values_lie_in_the_range_of_tanh():
    generator = build_generator(16, (32, 16))
    images = np.asarray(generator(sample_latents(np.arange(64), 16)))
    assert np.abs(images).max() <= 1


def test_the_length_of_a_latent_does_not_matter():
    generator = build_generator(16, (32, 16))
    latents = sample_latents(np.arange(4), 16)
    np.testing.assert_allclose(generator(latents), generator(7 * latents), atol=1e-5)


def test_the_discriminator_has_no_batch_normalisation():
    discriminator = build_discriminator(32, (8, 8, 8))
    assert not [x for x in discriminator.layers if isinstance(x, keras.layers.BatchNormalization)]


def test_the_discriminator_sees_when_all_pictures_of_a_batch_are_one():
    discriminator = build_discriminator(32, (8, 8, 8))
    spread = keras.Model(discriminator.input, discriminator.get_layer("minibatch_standard_deviation").output)
    varied = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    alike = np.repeat(varied[:1], 4, axis=0)
    assert np.asarray(spread(alike))[..., -1].max() < 1e-3 < np.asarray(spread(varied))[..., -1].min()
