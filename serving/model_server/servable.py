"""One version of a SavedModel, loaded. The only module of serving/ that imports TensorFlow."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf import config_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

TAG = "serve"
INIT_OP = "__saved_model_init_op"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARM_UP_REQUESTS = 1000  # TensorFlow Serving reads no more, either

# 64 rows of 65,536 numbers: 16 MiB of float32. The typed fields repeat their last value, so ten bytes can claim a
# tensor of any size; with 2**28 the process grew to 2.6 GB.
MAX_INPUT_ELEMENTS = 2**22

# It would have us take tf.saved_model.load, which gives functions where we want a session.
logging.getLogger("tensorflow").addFilter(lambda record: "is deprecated" not in record.getMessage())


@dataclass(frozen=True)
class _Call:
    """The callable of a signature, with the names of its inputs and outputs."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    run: Callable[..., Sequence[NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class Servable:
    """A loaded version. Threads may share it."""

    signature_defs: Mapping[str, Any]  # SignatureDef by signature name
    _calls: Mapping[str, _Call]

    def run(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs of `signature` by name, for the tensors `inputs` by name.

        Raises:
            ValueError: the graph refuses the inputs; the text is the kernel's own, as TensorFlow Serving passes it on.
            MemoryError: there is no memory for them.
        """
        call = self._calls[signature]
        try:
            return dict(zip(call.outputs, call.run(*(inputs[name] for name in call.inputs)), strict=True))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(_kernel_text(error.message)) from error
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(_kernel_text(error.message)) from error

    @staticmethod
    def decode(proto: Any) -> NDArray[Any]:
        """Return the tensor of a TensorProto: missing values repeat the last one, or are 0 if there is none.

        Raises:
            ValueError: it has no dtype, its shape is negative or above MAX_INPUT_ELEMENTS, or its content is of another
                length than the shape says.
        """
        shape = [dim.size for dim in proto.tensor_shape.dim]
        if min(shape, default=0) < 0 or prod(shape) > MAX_INPUT_ELEMENTS:
            raise ValueError(f"The shape {shape} is negative or above {MAX_INPUT_ELEMENTS} elements.")
        try:
            array: NDArray[Any] = tf.make_ndarray(proto)
            return array
        except (KeyError, TypeError, OverflowError) as error:  # make_ndarray's, of odd dtypes and values
            raise ValueError("The TensorProto can't be parsed.") from error

    @staticmethod
    def encode(array: NDArray[Any], proto: Any) -> None:
        """Write `array` into `proto`, in `tensor_content`: for 64 images 30 times as fast as in typed fields."""
        proto.CopyFrom(tf.make_tensor_proto(array))


def load(folder: Path) -> Servable:
    """Return the SavedModel in `folder`, after its own warm-up requests.

    Raises whatever TensorFlow does for a SavedModel or a warm-up file that can't be read, and ValueError for a model
    that refuses its own warm-up requests.
    """
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved_model.meta_graphs if TAG in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError(f"{folder} has no graph with the tag {TAG!r}.")
    signature_defs = dict(graphs[0].signature_def)
    servable = Servable(signature_defs, _calls(folder, signature_defs))
    for request in _warm_up_requests(folder / WARM_UP_FILE):
        inputs = {name: servable.decode(tensor) for name, tensor in request.inputs.items()}
        servable.run(request.model_spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY, inputs)
    return servable


def _calls(folder: Path, signature_defs: Mapping[str, Any]) -> dict[str, _Call]:
    """Return the callable of each signature.

    A session, as in TensorFlow Serving, in the thread that asks: a lone picture takes 2.2 ms, by a function 3.0. The
    single-threaded executor is as fast, but optimises no loop: its rows come out with other last bits. The public
    `make_callable` checks inputs before the kernels do, in its own words, for 0.3 ms.
    """
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        tf.compat.v1.saved_model.load(session, [TAG], str(folder))
    calls = {}
    for name, definition in signature_defs.items():
        if name == INIT_OP:  # has run by now, and returns nothing
            continue
        inputs, outputs = sorted(definition.inputs), sorted(definition.outputs)
        options = config_pb2.CallableOptions(
            run_options=config_pb2.RunOptions(inter_op_thread_pool=-1),  # the thread that asks
            feed=[definition.inputs[key].name for key in inputs],
            fetch=[definition.outputs[key].name for key in outputs],
        )
        calls[name] = _Call(inputs, outputs, session._make_callable_from_options(options))
    return calls


def _warm_up_requests(file: Path) -> list[Any]:
    """Return the PredictRequests in `file`, none if there is no such file."""
    if not file.is_file():
        return []
    records = tf.data.TFRecordDataset(str(file)).take(MAX_WARM_UP_REQUESTS).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    return [entry.predict_log.request for entry in logs if entry.HasField("predict_log")]


def _kernel_text(message: str) -> str:
    """Return the kernel's message, without stack, node and function."""
    said = message.split("\n\t [[")[0].split(" [Op:")[0].strip().splitlines()[-1]
    return re.sub(r"^\{\{\w+ .*?\}\} ", "", said)
