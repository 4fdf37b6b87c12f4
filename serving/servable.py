"""One version of a SavedModel, loaded. The only module of serving/ that imports TensorFlow."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

TAG = "serve"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARM_UP_REQUESTS = 1000  # TensorFlow Serving reads no more, either

# 64 rows of 65,536 numbers: 16 MiB of float32. The typed fields repeat their last value, so ten bytes can claim a
# tensor of any size; with 2**28 the process grew to 2.6 GB.
MAX_INPUT_ELEMENTS = 2**22

TYPED_FIELDS = MappingProxyType(
    {
        "float32": "float_val",
        "float64": "double_val",
        "bool": "bool_val",
        "uint8": "int_val",
        "int8": "int_val",
        "uint16": "int_val",
        "int16": "int_val",
        "int32": "int_val",
        "uint32": "uint32_val",
        "int64": "int64_val",
        "uint64": "uint64_val",
    }
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Servable:
    """A loaded version. Threads may share it."""

    signature_defs: Mapping[str, Any]  # SignatureDef by signature name
    _loaded: Any  # holds the variables that the signatures use

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return all outputs of `signature` by name, for the tensors `inputs` by name.

        Raises:
            ValueError: the graph refuses the inputs; the text is the kernel's own, as TensorFlow Serving passes it on.
            MemoryError: there is no memory for them.
        """
        try:
            outputs = self._loaded.signatures[signature](**inputs)
            return {name: output.numpy() for name, output in outputs.items()}
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(_kernel_text(error.message)) from error
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(_kernel_text(error.message)) from error

    @staticmethod
    def decode(proto: Any) -> Any:
        """Return the tensor of a TensorProto, read by TensorFlow's own C++.

        Missing values repeat the last one, or are 0 where there is none.

        Raises:
            ValueError: it has no dtype, its shape is negative or above MAX_INPUT_ELEMENTS, or its content is of another
                length than the shape says.
        """
        if prod(dim.size for dim in proto.tensor_shape.dim) > MAX_INPUT_ELEMENTS:
            raise ValueError(f"The tensor has more than {MAX_INPUT_ELEMENTS} elements.")
        try:
            return tf.io.parse_tensor(proto.SerializeToString(), proto.dtype)
        except (TypeError, tf.errors.InvalidArgumentError) as error:
            raise ValueError("The TensorProto can't be parsed.") from error

    @staticmethod
    def encode(array: NDArray[Any], *, typed_fields: bool) -> Any:
        """Return `array` as a TensorProto: in `tensor_content` or in typed fields.

        For 64 pictures of 128 x 128 the former takes 5 ms and the latter 150 ms.
        """
        proto = tf.make_tensor_proto(array)
        field = TYPED_FIELDS.get(array.dtype.name)
        if not typed_fields or field is None:
            return proto
        typed = tensor_pb2.TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
        getattr(typed, field).extend(array.ravel().tolist())
        return typed


def load(folder: Path) -> Servable:
    """Return the SavedModel in `folder`, warmed up with the requests that lie beside its graph.

    A warm-up file that can't be read is logged and left out. Raises whatever TensorFlow does for a SavedModel that
    can't be loaded, and ValueError for one that can't answer its own warm-up requests: it would answer nobody.
    """
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved_model.meta_graphs if TAG in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError(f"{folder} has no graph with the tag {TAG!r}.")
    servable = Servable(dict(graphs[0].signature_def), tf.saved_model.load(str(folder), tags=[TAG]))
    for request in _warm_up_requests(folder / WARM_UP_FILE):
        inputs = {name: servable.decode(tensor) for name, tensor in request.inputs.items()}
        servable.run(request.model_spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY, inputs)
    return servable


def _warm_up_requests(file: Path) -> list[Any]:
    """Return the PredictRequests in `file`: none if there is no such file, or if it can't be read."""
    if not file.is_file():
        return []
    try:
        records = tf.data.TFRecordDataset(str(file)).take(MAX_WARM_UP_REQUESTS).as_numpy_iterator()
        logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    except (tf.errors.OpError, DecodeError) as error:
        log.warning("the warm-up requests in %s can't be read: %s", file, error)
        return []
    return [entry.predict_log.request for entry in logs if entry.HasField("predict_log")]


def _kernel_text(message: str) -> str:
    """Return what the kernel said, without what TensorFlow in Python wraps around it: stack, node and function."""
    said = message.split("\n\t [[")[0].split(" [Op:")[0].strip().splitlines()[-1]
    return re.sub(r"^\{\{\w+ .*?\}\} ", "", said)
