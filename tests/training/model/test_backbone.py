"""The reader of weight files, and the backbone built from them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from training.model.backbone import build_backbone, load_weights
from training.model.weight_file import MAGIC, read_weights


def write_pickles(path: Path, *objects: object) -> Path:
    path.write_bytes(b"".join(pickle.dumps(content, 2) for content in objects))
    return path


def test_weight_file_is_rejected_when_it_holds_other_classes(tmp_path):
    path = write_pickles(tmp_path / "w.pth", MAGIC, 1001, {"little_endian": True}, {"a": eval})
    with pytest.raises(pickle.UnpicklingError, match=r"eval does not belong in a weight file"):
        read_weights(path)


def test_weight_file_is_rejected_when_its_format_differs(tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="not a weight file in PyTorch's legacy format"):
        read_weights(write_pickles(tmp_path / "w.pth", 7))


@pytest.mark.parametrize("variant", ["lite0", "lite1"])
def test_backbone_classifies_a_shaded_orange_disc_as_a_ball(variant):
    weights = load_weights(variant)
    y, x = np.mgrid[:224, :224] - 111.5
    disc = (np.hypot(x, y) < 80)[..., None]
    shade = 1 - np.hypot(x + 30, y + 30)[..., None] / 300
    image = np.where(disc, np.array([250, 140, 20]) * shade, 255.0)
    features = build_backbone(variant, weights, (8,), 224)((image[None] - 127) / 128)
    logits = np.asarray(features).mean((1, 2)) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert int(logits.argmax()) == 722  # ping-pong ball
