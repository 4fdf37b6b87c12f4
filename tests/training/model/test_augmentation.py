import keras
import numpy as np
import pytest
import tensorflow as tf

from training.config import TrainingConfig
from training.model.augmentation import augment


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 0.5, (64, 16, 16, 3)).astype(np.float32)


def augment_with(images, **options):
    config = TrainingConfig(**{"flip": False, "translate_probability": 0.0, **options})
    return augment(config, images, keras.random.SeedGenerator(1))


def test_shift_frequency_matches_its_probability(images):
    out = np.asarray(augment_with(np.repeat(images, 10, axis=0), translate_fraction=0.25, translate_probability=0.3))
    is_shifted = np.abs(out - np.repeat(images, 10, axis=0)).max((1, 2, 3)) > 1e-6
    assert 0.2 < is_shifted.mean() < 0.4


def test_gradient_reaches_every_visible_pixel(images):
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(augment_with(x, flip=True))
    np.testing.assert_allclose(tape.gradient(total, x), np.ones_like(images))
