import math
from dataclasses import replace
from itertools import islice

import keras
import numpy as np
import pytest
import tensorflow as tf

from training.config import TrainingConfig
from training.errors import TrainingError
from training.fit.run import iterate_batches
from training.model import losses
from training.model.checkpoints import load_checkpoint, save_checkpoint
from training.model.gan import build_gan

CONFIG = TrainingConfig(
    image_size=32, discriminator="plain", beta_1=0.5, steps=6, batch_size=8, r1_gamma=0.2, jit_compile=False
)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
ROWS = np.arange(20)


def train(gan, steps: int) -> None:
    for batch in islice(iterate_batches(PIXELS, ROWS, CONFIG, 0), steps):
        gan.train_step(batch)  # without a graph, which takes longer to build than to run


@pytest.fixture(scope="module")
def trained():
    gan = build_gan(CONFIG)
    train(gan, 6)
    return gan


def test_moving_average_differs_from_first_and_current_weights(trained):
    first = build_gan(CONFIG).generator.weights
    statistics = {id(v) for v in trained.generator.non_trainable_variables}
    for before, average, current in zip(first, trained.ema_generator.weights, trained.generator.weights, strict=True):
        assert not np.array_equal(average, before), current.path
        assert np.array_equal(average, current) == (id(current) in statistics), current.path


@pytest.mark.parametrize("refining", [False, True])
def test_normalisation_statistics_change_in_the_first_stage_only(refining):
    gan = build_gan(CONFIG, refining=refining)
    before = [v.numpy() for v in gan.generator.non_trainable_variables]
    train(gan, 1)
    assert all(map(np.array_equal, before, gan.generator.non_trainable_variables)) == refining


def test_step_moves_each_network_down_the_gradient_of_its_loss():
    gan = build_gan(replace(CONFIG, flip=False, translate_probability=0.0, r1_gamma=0.0))  # without noise
    gan.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=False)
    with tf.GradientTape(persistent=True) as tape:
        generator_loss, discriminator_loss, _ = gan.compute_losses(*next(iterate_batches(PIXELS, ROWS, CONFIG, 0)))
    for network, loss in ((gan.generator, generator_loss), (gan.discriminator, discriminator_loss)):
        network.expected = [np.asarray(w) - np.asarray(tape.gradient(loss, w)) for w in network.trainable_variables]
    train(gan, 1)
    for network in (gan.generator, gan.discriminator):
        for actual, expected in zip(network.trainable_variables, network.expected, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5, err_msg=actual.path)


def test_checkpoint_is_rejected_when_damaged_or_of_other_networks(trained, tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(trained, path)
    whole, before = path.read_bytes(), trained.get_weights()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for damaged in (whole[:5000], (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"checkpoint.npz cannot be read"):
            load_checkpoint(trained, path)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    name = next(name for name, array in arrays.items() if array.ndim == 4)
    np.savez(path, **arrays | {name: arrays[name][1:]})
    with pytest.raises(TrainingError, match="belongs to other networks"):
        load_checkpoint(trained, path)
    assert all(map(np.array_equal, trained.get_weights(), before))


def test_epoch_holds_each_training_photo_once():
    source = iterate_batches(PIXELS, ROWS[4:], CONFIG, 0)
    photos = [photo.tobytes() for _ in range(2) for photo in next(source)[0]]
    assert sorted(photos) == sorted(photo.tobytes() for photo in PIXELS[4:])


def test_learning_rate_falls_in_the_second_half_of_a_run():
    gan = build_gan(replace(CONFIG, steps=1000, learning_rate=5e-4, final_rate_fraction=0.1))
    rates = []
    for step in (0, 499, 750, 1000):
        gan.optimizer.iterations.assign(step)
        rates.append(float(gan.optimizer.learning_rate))
    assert rates == pytest.approx([5e-4, 5e-4, 2.75e-4, 5e-5])


@pytest.mark.parametrize(("photo", "generated", "loss"), [(0, 0, math.log(2)), (-1e4, 1e4, 1e4)])
def test_logistic_loss_is_finite_and_log_2_per_logit_of_0(photo, generated, loss):
    photo, generated = np.float32([photo] * 2), np.float32([generated] * 2)
    assert float(losses.generator_loss(-generated)) == pytest.approx(loss)
    assert float(losses.discriminator_loss(photo, generated)) == pytest.approx(2 * loss)


def test_hinge_losses_are_averaged_over_heads():
    real, generated = [np.float32([2, 0]), np.float32([-1])], [np.float32([-2, 0]), np.float32([1])]
    assert float(losses.hinge_discriminator_loss(real, generated)) == pytest.approx((0.5 + 0.5 + 2 + 2) / 2)
    assert float(losses.hinge_generator_loss(generated)) == pytest.approx(-(-1 + 1) / 2)


def test_approximate_r1_is_half_gamma_times_the_squared_gradient():
    rng = np.random.default_rng(0)
    gradient, x = rng.normal(size=50), rng.normal(size=(40_000, 50))
    noisy = x + 0.05 * rng.normal(size=x.shape)
    penalty = float(losses.approximate_r1(x @ gradient, noisy @ gradient, gamma=0.2, sigma=0.05))
    assert penalty == pytest.approx(0.5 * 0.2 * (gradient @ gradient), rel=0.05)
