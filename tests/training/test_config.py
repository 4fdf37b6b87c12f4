from dataclasses import fields

import pytest

from training.__main__ import build_parser
from training.config import DISCRIMINATOR_CHANNELS, GENERATOR_CHANNELS, IMAGE_SIZES, TrainingConfig
from training.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("image_size", 48, "32, 64, 128, 256"),
        ("preset", "tpu", "cpu, gpu"),
        ("steps", 0, "1 to"),
        ("batch_size", 1, "2 to"),
        ("learning_rate", float("nan"), "to 1.0"),
        ("beta_1", 1.0, "0.0 to 0.999"),
        ("translate_fraction", 0.6, "0.0 to 0.5"),
        ("seed", -1, "0 to"),
    ],
)
def test_config_is_refused_when_a_value_is_out_of_range(name, value, allowed):
    with pytest.raises(ConfigError) as raised:
        TrainingConfig(**{name: value})
    assert str(raised.value).startswith(f"{name} is {value!r}")
    assert allowed in str(raised.value)


def test_every_config_field_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["fit", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    for f in fields(TrainingConfig):
        assert f"--{f.name.replace('_', '-')}" in output
        assert f.metadata["help"] in output


def test_flag_is_none_when_omitted():
    options = build_parser().parse_args(["fit", "--photos", "p", "--out", "r", "--no-flip"])
    values = {f.name: getattr(options, f.name) for f in fields(TrainingConfig)}
    assert {name: value for name, value in values.items() if value is not None} == {"flip": False}


@pytest.mark.parametrize("flag", ["--size", "--image-size"])
def test_image_size_has_a_short_flag_and_a_long_one(flag):
    assert build_parser().parse_args(["fit", "--photos", "p", "--out", "r", flag, "128"]).image_size == 128


def test_config_is_equal_after_json():
    config = TrainingConfig(image_size=128, learning_rate=3e-4, flip=False)
    assert TrainingConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "{", "[]", '{"colour": "red"}', '{"steps": null}'])
def test_config_is_refused_when_json_is_damaged(text):
    with pytest.raises(ConfigError, match=r"^config\.json is not a valid configuration"):
        TrainingConfig.from_json(text)


def test_resume_is_allowed_when_only_free_settings_differ():
    TrainingConfig(steps=20_000, grid_every=7, checkpoint_every_s=1.0).check_resumable(TrainingConfig())


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_channel_lists_reach_from_4_pixels_to_the_image_size(preset, image_size):
    assert 4 * 2 ** (len(GENERATOR_CHANNELS[preset, image_size]) - 1) == image_size
    assert image_size >> len(DISCRIMINATOR_CHANNELS[preset, image_size]) == 4
