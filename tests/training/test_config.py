import re
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
def test_a_value_out_of_range_is_refused_by_name_value_and_range(name, value, allowed):
    with pytest.raises(ConfigError) as refused:
        TrainingConfig(**{name: value})
    assert str(refused.value).startswith(f"{name} is {value!r}")
    assert allowed in str(refused.value)


def test_every_field_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["fit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for f in fields(TrainingConfig):
        assert f"--{f.name.replace('_', '-')}" in said
        assert f.metadata["help"] in said


def test_what_stands_for_a_value_in_the_help_is_a_word(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["fit", "--help"])
    assert re.findall(r"\s--[-\w]+ \[?(\d\S*)", capsys.readouterr().out) == []


def test_a_flag_that_is_not_given_says_nothing():
    options = build_parser().parse_args(["fit", "--photos", "p", "--out", "r", "--no-flip"])
    given = {f.name: getattr(options, f.name) for f in fields(TrainingConfig)}
    assert {name: value for name, value in given.items() if value is not None} == {"flip": False}


@pytest.mark.parametrize("flag", ["--size", "--image-size"])
def test_the_size_has_a_short_name_and_a_long_one(flag):
    assert build_parser().parse_args(["fit", "--photos", "p", "--out", "r", flag, "128"]).image_size == 128


def test_the_configuration_survives_json():
    config = TrainingConfig(image_size=128, learning_rate=3e-4, flip=False)
    assert TrainingConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "{", "[]", '{"colour": "red"}', '{"steps": null}'])
def test_a_damaged_configuration_is_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^config\.json is not a configuration of this program"):
        TrainingConfig.from_json(text)


def test_a_begun_run_keeps_what_shapes_its_weights():
    with pytest.raises(ConfigError, match="batch_size is 32, but the run began with 16"):
        TrainingConfig(batch_size=32).refuse_to_continue(TrainingConfig())


def test_a_begun_run_may_be_longer_and_report_differently():
    TrainingConfig(steps=20_000, grid_every=7, checkpoint_every_s=1.0).refuse_to_continue(TrainingConfig())


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_widths_lead_from_4_pixels_to_the_image_size(preset, image_size):
    assert 4 * 2 ** (len(GENERATOR_CHANNELS[preset, image_size]) - 1) == image_size
    assert image_size >> len(DISCRIMINATOR_CHANNELS[preset, image_size]) == 4
