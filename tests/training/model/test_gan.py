import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.conftest import ROOT, with_backend
from training.config import TrainingConfig
from training.errors import CheckpointError
from training.fit.run import batches
from training.model.checkpoints import load_checkpoint, save_checkpoint
from training.model.gan import LateCosine, build_gan

CONFIG = TrainingConfig(
    image_size=32, discriminator="plain", beta_1=0.5, steps=6, batch_size=8, r1_gamma=0.2, jit_compile=False
)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
ROWS = np.arange(20)


def train(gan, first_step: int, steps: int) -> None:
    gan.fit(batches(PIXELS, ROWS, CONFIG, first_step), steps_per_epoch=steps, verbose=0, shuffle=False)


def weights(network: keras.Model) -> np.ndarray:
    return np.concatenate([np.asarray(w).ravel() for w in network.weights])


@pytest.fixture(scope="module")
def trained():
    gan = build_gan(CONFIG)
    train(gan, 0, 6)
    return gan


def test_a_step_changes_both_networks_and_the_moving_average(trained):
    fresh = build_gan(CONFIG)
    for part in ("generator", "discriminator", "ema_generator"):
        assert np.abs(weights(getattr(trained, part)) - weights(getattr(fresh, part))).max() > 0, part


def test_the_moving_average_lags_behind_but_has_the_current_normalisation_statistics(trained):
    statistics = {id(v) for v in trained.generator.non_trainable_variables}
    for average, current in zip(trained.ema_generator.weights, trained.generator.weights, strict=True):
        alike = np.array_equal(average, current)
        assert alike == (id(current) in statistics), current.path


def plain_gan():
    """A GAN without noise in its step, whose optimizer subtracts the gradient and nothing else."""
    gan = build_gan(replace(CONFIG, flip=False, translate_probability=0.0, r1_gamma=0.0))
    rng = np.random.default_rng(3)
    for network in (gan.generator, gan.discriminator):
        weights = [
            rng.uniform(0.5, 1.5, w.shape) if len(w.shape) == 1 else rng.normal(0, 0.05, w.shape)
            for w in network.weights
        ]
        network.set_weights(weights)
    gan.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=keras.backend.backend() == "jax")
    return gan


def test_a_step_moves_each_network_down_the_gradient_of_its_own_loss():
    import tensorflow as tf

    gan, batch = plain_gan(), next(batches(PIXELS, ROWS, CONFIG, 0))
    with tf.GradientTape(persistent=True) as tape:
        for_generator, for_discriminator, _ = gan.losses_of(*batch)
    for network, loss in ((gan.generator, for_generator), (gan.discriminator, for_discriminator)):
        network.expected = [np.asarray(w) - np.asarray(tape.gradient(loss, w)) for w in network.trainable_variables]
    train(gan, 0, 1)
    for network in (gan.generator, gan.discriminator):
        for found, expected in zip(network.trainable_variables, network.expected, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=found.path)


def test_a_checkpoint_brings_back_every_bit_of_networks_optimizer_and_noise(trained, tmp_path):
    save_checkpoint(trained, tmp_path / "checkpoint.npz")
    fresh = build_gan(CONFIG)
    assert not np.array_equal(fresh.noise.state, trained.noise.state)
    load_checkpoint(fresh, tmp_path / "checkpoint.npz")
    for part in ("generator", "discriminator", "ema_generator", "optimizer"):
        ours, theirs = getattr(fresh, part).variables, getattr(trained, part).variables
        assert [np.asarray(v).tobytes() for v in ours] == [np.asarray(v).tobytes() for v in theirs], part
    assert np.array_equal(fresh.noise.state, trained.noise.state)


def test_a_damaged_checkpoint_is_one_sentence_and_changes_nothing(trained, tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(trained, path)
    path.write_bytes(path.read_bytes()[:5000])
    fresh = build_gan(CONFIG)
    before = weights(fresh)
    with pytest.raises(CheckpointError, match=r"checkpoint.npz cannot be read"):
        load_checkpoint(fresh, path)
    assert np.array_equal(weights(fresh), before)


def test_a_checkpoint_of_other_networks_is_refused(trained, tmp_path):
    save_checkpoint(trained, tmp_path / "checkpoint.npz")
    with pytest.raises(CheckpointError, match="belongs to other networks"):
        load_checkpoint(build_gan(replace(CONFIG, image_size=64)), tmp_path / "checkpoint.npz")


def test_a_batch_depends_on_its_number_alone():
    straight = batches(PIXELS, ROWS, CONFIG, 0)
    for _ in range(5):
        next(straight)
    for expected, found in zip(next(straight), next(batches(PIXELS, ROWS, CONFIG, 5)), strict=True):
        assert np.array_equal(expected, found)


def test_no_photo_is_shown_but_those_to_train_on():
    source = batches(PIXELS, ROWS[5:], CONFIG, 0)
    shown = {next(source)[0][i].tobytes() for _ in range(30) for i in range(CONFIG.batch_size)}
    assert shown == {photo.tobytes() for photo in PIXELS[5:]}


def test_an_epoch_shows_no_photo_twice():
    source = batches(PIXELS, ROWS, CONFIG, 0)
    shown = np.concatenate([next(source)[0] for _ in range(len(PIXELS) // CONFIG.batch_size)])
    assert len(np.unique(shown.reshape(len(shown), -1), axis=0)) == len(shown)


def test_the_learning_rate_holds_for_half_the_run_and_falls_to_its_end():
    rate = LateCosine(5e-4, 5e-5, 1000)
    assert [float(rate(step)) for step in (0, 500, 750, 1000)] == pytest.approx([5e-4, 5e-4, 2.75e-4, 5e-5])


ONE_STEP = """
import numpy as np
from tests.training.model.test_gan import CONFIG, PIXELS, ROWS, plain_gan, train
from training.fit.run import batches
gan = plain_gan()
print(*(float(v) for v in gan.losses_of(*next(batches(PIXELS, ROWS, CONFIG, 0)))[:2]))
train(gan, 0, 1)
for network in (gan.generator, gan.discriminator):
    print(*(float(np.linalg.norm(np.asarray(w))) for w in network.trainable_variables))
"""


def test_both_backends_compute_the_same_losses_and_take_the_same_step():
    processes = {
        backend: subprocess.Popen(
            [sys.executable, "-c", ONE_STEP],
            env=with_backend(backend),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in ("tensorflow", "jax")
    }
    found = {}
    for backend, process in processes.items():
        told, complaints = process.communicate(timeout=200)
        assert process.returncode == 0, complaints
        found[backend] = np.array(told.split(), float)
    np.testing.assert_allclose(found["jax"], found["tensorflow"], rtol=1e-3)
