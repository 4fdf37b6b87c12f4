"""Reader of PyTorch's legacy weight files that runs no pickled code."""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
MAGIC = 0x1950A86A20F9469CFC6C  # number at the start of PyTorch's format before 1.6

Weights = dict[str, NDArray[np.float32]]


@dataclass
class _Storage:
    values: NDArray[Any]  # empty at first; they follow in the file after the pickle


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def array(self) -> NDArray[Any]:
        """Return a copy of the tensor."""
        values = self.storage.values
        # NumPy checks that the tensor lies within the storage.
        strides = [stride * values.itemsize for stride in self.strides]
        return np.ndarray(self.shape, values.dtype, values, self.offset * values.itemsize, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Unpickler that builds tensors and rejects every other class."""

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
        raise pickle.UnpicklingError(
            f"{module}.{name} does not belong in a weight file; reinstall the package of the file"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return self.storages.setdefault(key, _Storage(np.empty(0, DTYPES[kind])))


def read_weights(path: Path) -> Weights:
    """Return the arrays of a PyTorch state dictionary by name.

    Raises UnpicklingError if `path` is not in the legacy format.
    """
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise pickle.UnpicklingError(
                f"{path} is not a weight file in PyTorch's legacy format; reinstall its package."
            )
        for _ in ("protocol version", "byte order"):
            _Unpickler(file).load()
        unpickler = _Unpickler(file)
        tensors: dict[str, _Tensor] = unpickler.load()
        for key in _Unpickler(file).load():
            storage, count = unpickler.storages[key], int.from_bytes(file.read(8), "little")
            storage.values = np.frombuffer(file.read(count * storage.values.itemsize), storage.values.dtype)
    return {name: tensor.array() for name, tensor in tensors.items()}
