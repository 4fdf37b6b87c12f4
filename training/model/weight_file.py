"""Reader of PyTorch's legacy weight files that runs no pickled code."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

Weights = dict[str, NDArray[np.float32]]


class _Unpickler(pickle.Unpickler):
    """Reads state dictionaries only; a tensor becomes storage, offset, shape and strides."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(
            f"{module}.{name} does not belong in a weight file; reinstall the package of the file"
        )

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        _, kind, key, *_ = pid
        return key, DTYPES[kind]


def read_weights(path: Path) -> Weights:
    """Return the arrays of a PyTorch state dictionary by name. Raises UnpicklingError for another format."""
    with path.open("rb") as file:
        for _ in ("magic number", "protocol version", "byte order"):
            _Unpickler(file).load()
        tensors = _Unpickler(file).load()
        dtypes = dict(storage for storage, *_ in tensors.values())
        storages = {}
        for key in _Unpickler(file).load():
            count = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key])
    weights = {}
    for name, ((key, dtype), offset, shape, strides) in tensors.items():
        byte_strides = [stride * dtype.itemsize for stride in strides]
        # NumPy checks that the tensor lies within the storage.
        weights[name] = np.ndarray(shape, dtype, storages[key], offset * dtype.itemsize, byte_strides).copy()
    return weights
