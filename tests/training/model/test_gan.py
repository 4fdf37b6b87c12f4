import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.conftest import ROOT, with_backend
from training.config import TrainingConfig
from training.errors import CheckpointError
from training.fit.run import iterate_batches
from training.model.checkpoints import load_checkpoint, save_checkpoint
from training.model.gan import LateCosine, build_gan

CONFIG = TrainingConfig(
    image_size=32, discriminator="plain", beta_1=0.5, steps=6, batch_size=8, r1_gamma=0.2, jit_compile=False
)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
ROWS = np.arange(20)


def train(gan, first_step: int, steps: int) -> None:
    gan.fit(iterate_batches(PIXELS, ROWS, CONFIG, first_step), steps_per_epoch=steps, verbose=0, shuffle=False)


def weights(network: keras.Model) -> np.ndarray:
    return np.concatenate([np.asarray(w).ravel() for w in network.weights])


@pytest.fixture(scope="module")
def trained():
    gan = build_gan(CONFIG)
    train(gan, 0, 6)
    return gan


def test_step_changes_both_networks_and_the_moving_average(trained):
    fresh = build_gan(CONFIG)
    for part in ("generator", "discriminator", "ema_generator"):
        assert np.abs(weights(getattr(trained, part)) - weights(getattr(fresh, part))).max() > 0, part


def test_moving_average_has_the_current_normalisation_statistics(trained):
    statistics = {id(v) for v in trained.generator.non_trainable_variables}
    for average, current in zip(trained.ema_generator.weights, trained.generator.weights, strict=True):
        is_equal = np.array_equal(average, current)
        assert is_equal == (id(current) in statistics), current.path


def build_plain_gan():
    """Return a GAN without noise; its optimizer only subtracts the gradient."""
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


def test_step_moves_each_network_down_the_gradient_of_its_loss():
    import tensorflow as tf

    gan, batch = build_plain_gan(), next(iterate_batches(PIXELS, ROWS, CONFIG, 0))
    with tf.GradientTape(persistent=True) as tape:
        generator_loss, discriminator_loss, _ = gan.compute_losses(*batch)
    for network, loss in ((gan.generator, generator_loss), (gan.discriminator, discriminator_loss)):
        network.expected = [np.asarray(w) - np.asarray(tape.gradient(loss, w)) for w in network.trainable_variables]
    train(gan, 0, 1)
    for network in (gan.generator, gan.discriminator):
        for actual, expected in zip(network.trainable_variables, network.expected, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5, err_msg=actual.path)


def test_checkpoint_restores_every_bit_of_the_state(trained, tmp_path):
    save_checkpoint(trained, tmp_path / "checkpoint.npz")
    fresh = build_gan(CONFIG)
    assert not np.array_equal(fresh.noise.state, trained.noise.state)
    load_checkpoint(fresh, tmp_path / "checkpoint.npz")
    for part in ("generator", "discriminator", "ema_generator", "optimizer"):
        actual, expected = getattr(fresh, part).variables, getattr(trained, part).variables
        assert [np.asarray(v).tobytes() for v in actual] == [np.asarray(v).tobytes() for v in expected], part
    assert np.array_equal(fresh.noise.state, trained.noise.state)


def test_checkpoint_is_rejected_when_damaged_or_of_other_networks(trained, tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(trained, path)
    whole, before = path.read_bytes(), weights(trained)
    path.write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match=r"checkpoint.npz cannot be read"):
        load_checkpoint(trained, path)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    name = next(name for name, array in arrays.items() if array.ndim == 4)
    np.savez(path, **arrays | {name: arrays[name][1:]})
    with pytest.raises(CheckpointError, match="belongs to other networks"):
        load_checkpoint(trained, path)
    assert np.array_equal(weights(trained), before)


def test_batch_depends_on_its_number_alone():
    straight = iterate_batches(PIXELS, ROWS, CONFIG, 0)
    for _ in range(5):
        next(straight)
    for expected, actual in zip(next(straight), next(iterate_batches(PIXELS, ROWS, CONFIG, 5)), strict=True):
        assert np.array_equal(expected, actual)


def test_batches_hold_training_photos_only():
    source = iterate_batches(PIXELS, ROWS[5:], CONFIG, 0)
    photos = {next(source)[0][i].tobytes() for _ in range(30) for i in range(CONFIG.batch_size)}
    assert photos == {photo.tobytes() for photo in PIXELS[5:]}


def test_epoch_repeats_no_photo():
    source = iterate_batches(PIXELS, ROWS, CONFIG, 0)
    photos = np.concatenate([next(source)[0] for _ in range(len(PIXELS) // CONFIG.batch_size)])
    assert len(np.unique(photos.reshape(len(photos), -1), axis=0)) == len(photos)


def test_learning_rate_falls_in_the_second_half_of_a_run():
    rate = LateCosine(5e-4, 5e-5, 1000)
    assert [float(rate(step)) for step in (0, 500, 750, 1000)] == pytest.approx([5e-4, 5e-4, 2.75e-4, 5e-5])


STEP_SCRIPT = """
import numpy as np
from tests.training.model.test_gan import CONFIG, PIXELS, ROWS, build_plain_gan, train
from training.fit.run import iterate_batches
gan = build_plain_gan()
print(*(float(v) for v in gan.compute_losses(*next(iterate_batches(PIXELS, ROWS, CONFIG, 0)))[:2]))
train(gan, 0, 1)
for network in (gan.generator, gan.discriminator):
    print(*(float(np.linalg.norm(np.asarray(w))) for w in network.trainable_variables))
"""


def test_backends_agree_on_losses_and_step():
    processes = {
        backend: subprocess.Popen(
            [sys.executable, "-c", STEP_SCRIPT],
            env=with_backend(backend),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in ("tensorflow", "jax")
    }
    results = {}
    for backend, process in processes.items():
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        results[backend] = np.array(stdout.split(), float)
    np.testing.assert_allclose(results["jax"], results["tensorflow"], rtol=1e-3)
