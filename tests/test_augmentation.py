import keras
import numpy as np
import pytest
import tensorflow as tf

from training.augmentation import augment


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 0.5, (64, 16, 16, 3)).astype(np.float32)


def augmented(images, **chosen) -> np.ndarray:
    options = {"flip": False, "translate_fraction": 0.0, "zoom_deviation": 0.0, "probability": 1.0, **chosen}
    return np.asarray(augment(images, keras.random.SeedGenerator(1), **options))


def test_nothing_chosen_changes_nothing(images):
    np.testing.assert_allclose(augmented(images), images, atol=1e-6)


def test_about_half_are_mirrored_left_to_right(images):
    out = augmented(images, flip=True)
    mirrored = np.abs(out - images[:, :, ::-1]).max((1, 2, 3)) < 1e-6
    untouched = np.abs(out - images).max((1, 2, 3)) < 1e-6
    assert (mirrored | untouched).all()
    assert 16 < mirrored.sum() < 48


def test_a_shift_moves_the_picture_and_fills_with_white(images):
    out = augmented(images, translate_fraction=0.25)
    for before, after in zip(images, out, strict=True):
        padded = np.pad(before, ((4, 4), (4, 4), (0, 0)), constant_values=1.0)
        windows = [padded[y : y + 16, x : x + 16] for y in range(9) for x in range(9)]
        assert min(np.abs(after - window).max() for window in windows) < 1e-6


def test_shifts_are_as_frequent_as_asked(images):
    out = augmented(np.repeat(images, 10, axis=0), translate_fraction=0.25, probability=0.3)
    moved = np.abs(out - np.repeat(images, 10, axis=0)).max((1, 2, 3)) > 1e-6
    assert 0.2 < moved.mean() < 0.4


def test_a_zoom_keeps_the_centre_and_fills_with_white():
    black = np.full((64, 17, 17, 3), -1.0, np.float32)
    out = augmented(black, zoom_deviation=0.5)
    np.testing.assert_allclose(out[:, 8, 8], -1.0, atol=1e-6)
    sides = (out[:, 8, :, 0] < 0).sum(axis=1)  # how wide the black square has become
    assert sides.min() < 12
    assert (sides == 17).sum() > 16
    np.testing.assert_allclose(out[sides < 12][:, 0], 1.0, atol=1e-6)


def test_a_gradient_reaches_every_pixel_that_is_seen(images):
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(
            augment(
                x, keras.random.SeedGenerator(1), flip=True, translate_fraction=0.0, zoom_deviation=0.0, probability=0.0
            )
        )
    np.testing.assert_allclose(tape.gradient(total, x), np.ones_like(images))
