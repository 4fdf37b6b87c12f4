import keras
import numpy as np
import pytest
import tensorflow as tf

from training.model.augmentation import augment


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 0.5, (64, 16, 16, 3)).astype(np.float32)


def augmented(images, **chosen) -> np.ndarray:
    options = {"flip": False, "translate_fraction": 0.0, "translate_probability": 0.0, **chosen}
    return np.asarray(augment(images, keras.random.SeedGenerator(1), **options))


def test_nothing_chosen_changes_nothing(images):
    np.testing.assert_allclose(augmented(images), images, atol=1e-6)


def test_about_half_are_mirrored_left_to_right(images):
    out = augmented(images, flip=True)
    mirrored = np.abs(out - images[:, :, ::-1]).max((1, 2, 3)) < 1e-6
    untouched = np.abs(out - images).max((1, 2, 3)) < 1e-6
    assert (mirrored | untouched).all()
    assert 16 < mirrored.sum() < 48


def test_a_shift_moves_the_image_and_fills_by_reflection(images):
    out = augmented(images, translate_fraction=0.25, translate_probability=1.0)
    for before, after in zip(images, out, strict=True):
        padded = np.pad(before, ((4, 4), (4, 4), (0, 0)), mode="symmetric")
        windows = [padded[y : y + 16, x : x + 16] for y in range(9) for x in range(9)]
        assert min(np.abs(after - window).max() for window in windows) < 1e-6


def test_shifts_are_as_frequent_as_asked(images):
    out = augmented(np.repeat(images, 10, axis=0), translate_fraction=0.25, translate_probability=0.3)
    moved = np.abs(out - np.repeat(images, 10, axis=0)).max((1, 2, 3)) > 1e-6
    assert 0.2 < moved.mean() < 0.4


def test_a_gradient_reaches_every_pixel_that_is_seen(images):
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(
            augment(x, keras.random.SeedGenerator(1), flip=True, translate_fraction=0.0, translate_probability=0.0)
        )
    np.testing.assert_allclose(tape.gradient(total, x), np.ones_like(images))
