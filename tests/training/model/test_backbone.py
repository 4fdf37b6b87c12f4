"""The reader of weight files, and the backbone built from them."""

import pickle

import numpy as np
import pytest

from training.model.backbone import build_backbone, load_weights
from training.model.weight_file import MAGIC, read_weights


@pytest.mark.parametrize(
    ("first", "sentence"),
    [(MAGIC, "eval does not belong in a weight file"), (7, "is not a weight file in PyTorch's legacy format")],
)
def test_weight_file_is_rejected_when_classes_or_format_differ(tmp_path, first, sentence):
    pickles = (first, 1001, {"little_endian": True}, {"a": eval})
    (tmp_path / "w.pth").write_bytes(b"".join(pickle.dumps(content, 2) for content in pickles))
    with pytest.raises(pickle.UnpicklingError, match=sentence):
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
