from dataclasses import replace

import numpy as np
import pytest

from tests.training.model.test_projected import CONFIG, IMAGES, PIXELS
from training.model.gan import build_gan
from training.model.sampling import generate_images


@pytest.fixture(scope="module")
def gan():
    gan = build_gan(replace(CONFIG, realism_weight=100.0), refining=True)
    gan.realism.set_statistics(PIXELS, generate_images(gan.ema_generator, np.arange(20)))
    return gan


def test_penalty_is_the_mean_excess_over_the_typical_distance(gan):
    images = generate_images(gan.ema_generator, np.arange(20)) / np.float32(127.5) - 1
    photos, generated = (np.asarray(gan.realism.extract_features(x)) for x in (IMAGES, images))
    distances = np.linalg.norm(generated[:, None] - photos, axis=2).min(1)
    expected = (distances / distances.mean() - 1).clip(0).mean()
    assert float(gan.realism(images)) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.001


def test_photos_themselves_have_no_penalty(gan):
    assert float(gan.realism(IMAGES)) == 0.0


def test_training_lowers_the_penalty(gan):
    latents = np.random.default_rng(1).normal(size=(4, CONFIG.latent_dim)).astype(np.float32)
    penalties = [float(gan.train_step((PIXELS[:4], latents))["realism"]) for _ in range(4)]
    assert penalties[-1] < 0.9 * penalties[0]
