"""A loaded SavedModel; the only module of serving/ that imports TensorFlow."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2

INIT_OP = "__saved_model_init_op"

# 64 rows of 65,536 numbers: 16 MiB of float32. The typed fields repeat their last value, so ten bytes can claim a
# tensor of any size; with 2**28 the process grew to 2.6 GB.
MAX_INPUT_ELEMENTS = 2**22

# The dtypes of the SavedModel contract; TensorFlow itself reads and writes others.
TYPED_FIELDS = {"uint8": "int_val", "int64": "int64_val", "float32": "float_val"}
PLAIN_DTYPES = {tf.as_dtype(name).as_datatype_enum: np.dtype(name) for name in TYPED_FIELDS}

log = logging.getLogger(__name__)
# A warning advises tf.saved_model.load, which returns functions; `_call` needs a session.
logging.getLogger("tensorflow").addFilter(lambda record: "is deprecated" not in record.getMessage())

Tensors = Mapping[str, NDArray[Any]]  # by name


@dataclass(frozen=True, eq=False)
class Servable:
    """A loaded version; thread-safe."""

    signature_defs: Mapping[str, Any]  # SignatureDef by signature name
    _calls: Mapping[str, Callable[[Tensors], Tensors]]

    def run(self, signature: str, inputs: Tensors) -> Tensors:
        """Return all outputs of `signature` for `inputs`, both by name.

        Raises ValueError with the kernel's text if the graph refuses the inputs, and MemoryError.
        """
        try:
            return self._calls[signature](inputs)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(_kernel_text(error.message)) from error
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(_kernel_text(error.message)) from error

    @staticmethod
    def decode(proto: Any) -> NDArray[Any]:
        """Return the tensor of a TensorProto, without a copy if possible.

        Missing values repeat the last one, or are 0. Raises ValueError if it has no dtype, a negative or too large
        shape, or content that does not fit the shape.
        """
        shape = [dim.size for dim in proto.tensor_shape.dim]
        if prod(shape) > MAX_INPUT_ELEMENTS:
            raise ValueError(f"The tensor has more than {MAX_INPUT_ELEMENTS} elements.")
        content, dtype = proto.tensor_content, PLAIN_DTYPES.get(proto.dtype)
        if dtype is not None and min(shape, default=0) >= 0 and len(content) == prod(shape) * dtype.itemsize:
            return np.frombuffer(content, dtype).reshape(shape)
        try:
            return np.asarray(tf.io.parse_tensor(proto.SerializeToString(), proto.dtype).numpy())
        except (TypeError, tf.errors.InvalidArgumentError) as error:
            raise ValueError("The TensorProto can't be parsed.") from error

    @staticmethod
    def encode(array: NDArray[Any], proto: Any, *, typed_fields: bool) -> None:
        """Write `array` to the empty `proto`: in `tensor_content` or typed fields.

        For 64 images of 128 x 128 the former takes 5 ms and the latter 150 ms.
        """
        dtype = tf.as_dtype(array.dtype)
        field = TYPED_FIELDS.get(dtype.name)
        if field is None:
            proto.CopyFrom(tf.make_tensor_proto(array))
            return
        proto.dtype = dtype.as_datatype_enum
        for size in array.shape:
            proto.tensor_shape.dim.add(size=size)
        if typed_fields:
            getattr(proto, field).extend(array.ravel().tolist())
        else:
            proto.tensor_content = array.tobytes()


def load(folder: Path) -> Servable:
    """Return the SavedModel in `folder`, after running its warm-up requests.

    A warm-up file that can't be read is logged and skipped. Raises TensorFlow's errors for a SavedModel that can't be
    loaded, and ValueError for one that fails on its warm-up requests.
    """
    session = tf.compat.v1.Session(graph=tf.Graph())
    signature_defs = dict(tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def)
    # The initialisation has run already, and has no output.
    calls = {name: _call(session, signature) for name, signature in signature_defs.items() if name != INIT_OP}
    servable = Servable(signature_defs, calls)
    for request in _warm_up_requests(folder / "assets.extra/tf_serving_warmup_requests"):
        inputs = {name: servable.decode(tensor) for name, tensor in request.inputs.items()}
        servable.run(request.model_spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY, inputs)
    return servable


def _call(session: tf.compat.v1.Session, signature: Any) -> Callable[[Tensors], Tensors]:
    """Return a function that runs one signature, and holds its session open.

    A session in the calling thread, as in TensorFlow Serving, takes 2.2 ms for one image, a function 3.0. The
    single-threaded executor is as fast, but optimises no loop: last bits differ. The public `make_callable` checks
    inputs before the kernels do, with other messages, in 0.3 ms.
    """
    inputs, outputs = sorted(signature.inputs), sorted(signature.outputs)
    options = config_pb2.CallableOptions(
        run_options=config_pb2.RunOptions(inter_op_thread_pool=-1),  # the calling thread
        feed=[signature.inputs[name].name for name in inputs],
        fetch=[signature.outputs[name].name for name in outputs],
    )
    run = session._make_callable_from_options(options)
    return lambda tensors: dict(zip(outputs, run(*(tensors[name] for name in inputs)), strict=True))


def _warm_up_requests(file: Path) -> list[Any]:
    """Return the PredictRequests in `file`; none if it can't be read."""
    if not file.is_file():
        return []
    try:
        records = tf.data.TFRecordDataset(str(file)).take(1000).as_numpy_iterator()  # as TensorFlow Serving
        logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    except (tf.errors.OpError, DecodeError) as error:
        log.warning("the warm-up requests in %s can't be read: %s", file, error)
        return []
    return [entry.predict_log.request for entry in logs if entry.HasField("predict_log")]


def _kernel_text(message: str) -> str:
    """Return the kernel's message without TensorFlow's stack, node and function."""
    text = message.split("\n\t [[")[0].split(" [Op:")[0].strip().splitlines()[-1]
    return re.sub(r"^\{\{\w+ .*?\}\} ", "", text)
