"""One run on both backends, TensorFlow and JAX."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.training.fit.test_environment import run_in_root
from tests.training.fit.test_run import fit, fit_arguments, read_losses
from tests.training.model.test_projected import CONFIG, PIXELS
from training.model.gan import build_gan

NO_AUGMENTATION = ("--no-flip", "--translate-probability", 0)  # its random numbers differ between the backends

SCRIPT = """
import sys
import numpy as np
from tests.training.model.test_backends import compute_projected_losses
from training.__main__ import main
np.savetxt(sys.argv[1], compute_projected_losses())
sys.exit(main(sys.argv[2:]))
"""


def compute_projected_losses() -> list[float]:
    """Return both losses of a GAN with weights from NumPy."""
    gan = build_gan(replace(CONFIG, flip=False, translate_probability=0.0))
    rng = np.random.default_rng(3)
    for network in (gan.generator, *gan.discriminator.heads):
        shapes = [weight.shape for weight in network.weights]
        network.set_weights([rng.uniform(0.5, 1.5, s) if len(s) == 1 else rng.normal(0, 0.05, s) for s in shapes])
    gan.discriminator.set_feature_statistics(PIXELS)
    return [float(loss) for loss in gan.compute_losses(PIXELS[:4], rng.normal(size=(4, 128)).astype("float32"))[:2]]


@pytest.fixture(scope="module")
def jax_folder(photos, tmp_path_factory):
    """Return a folder with two runs of four batches.

    TensorFlow did the first two batches of both; then JAX resumed `jax`, and TensorFlow `run`.
    """
    folder = tmp_path_factory.mktemp("backends")
    fit(photos, folder / "run", "--steps", 2, *NO_AUGMENTATION)
    shutil.copytree(folder / "run", folder / "jax")
    arguments = fit_arguments(photos, folder / "jax", "--steps", 4, "--jit-compile", *NO_AUGMENTATION)
    backend = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = run_in_root(sys.executable, "-c", SCRIPT, str(folder / "losses"), *arguments, **backend)
    assert process.returncode == 0, process.stderr
    fit(photos, folder / "run", "--steps", 4, *NO_AUGMENTATION)
    return folder


def test_losses_are_equal_when_jax_resumes_a_run(jax_folder):
    np.testing.assert_allclose(read_losses(jax_folder / "jax"), read_losses(jax_folder / "run"), rtol=1e-3)


def test_tensorflow_resumes_a_run_when_jax_stopped_it(photos, jax_folder, tmp_path):
    run = shutil.copytree(jax_folder / "jax", tmp_path / "run")
    assert fit(photos, run, "--steps", 5, *NO_AUGMENTATION) == 0
    assert read_losses(run)[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_projected_losses_are_equal_on_both_backends(jax_folder):
    np.testing.assert_allclose(np.loadtxt(jax_folder / "losses"), compute_projected_losses(), rtol=1e-3)
