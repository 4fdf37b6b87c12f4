import json
from dataclasses import asdict, fields

import pytest

from training.__main__ import build_parser
from training.config import DISCRIMINATOR_CHANNELS, GENERATOR_CHANNELS, IMAGE_SIZES, TrainingConfig, read_config
from training.errors import TrainingError


def test_every_config_field_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["fit", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    for f in fields(TrainingConfig):
        assert f"--{f.name.replace('_', '-')}" in output
        assert f.metadata["help"] in output


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # some editors add a byte order mark
def test_config_is_equal_after_json(tmp_path, encoding):
    config = TrainingConfig(image_size=128, learning_rate=3e-4, flip=False)
    settings = asdict(config)
    for name in ("grid_every", "correct_black_level"):  # older files lack them: they have their defaults
        del settings[name]
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding)
    assert read_config(tmp_path / "config.json") == config


VALID = json.dumps(asdict(TrainingConfig()))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (VALID.encode("utf-16"), "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid"),
        (VALID[:-1] + ', "seed": 7}', "cannot be read ('seed' occurs 2 times)"),
        (VALID[:-1] + ', "colour": ' + "[" * 200_000, "cannot be read (maximum recursion depth exceeded"),
        (VALID[:-1] + ', "colour": 1}', "has the unknown setting 'colour'"),
        (VALID.replace('"flip": true, ', ""), "lacks the setting 'flip'"),
        (VALID.replace('"flip": true', '"flip": "no"'), "cannot be read (Expected `bool`, got `str` - at `$.flip`)"),
        (VALID.replace('"seed": 0', '"seed": "70"'), "cannot be read (Expected `int`, got `str` - at `$.seed`)"),
        (VALID.replace('"seed": 0', '"seed": 62.5'), "cannot be read (Expected `int`, got `float` - at `$.seed`)"),
        (VALID.replace('"cpu"', '"tpu"'), "cannot be read (preset is 'tpu'; set it to one of cpu, gpu)"),
        (VALID.replace('count": 500', 'count": 10001'), "cannot be read (evaluate_count is 10001; set it to"),
        (VALID.replace('"seed": 0', '"seed": -1'), "cannot be read (seed is -1; set it to a value from 0 to"),
    ],
)
def test_config_is_refused_in_one_sentence_when_json_is_invalid(tmp_path, content, fault):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrainingError) as raised:
        read_config(path)
    message = str(raised.value)
    assert message.startswith(f"{path} {fault}")
    assert message.endswith("; restore it from a backup.")


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_channel_lists_reach_from_4_pixels_to_the_image_size(preset, image_size):
    assert 4 * 2 ** (len(GENERATOR_CHANNELS[preset, image_size]) - 1) == image_size
    assert image_size >> len(DISCRIMINATOR_CHANNELS[preset, image_size]) == 4
