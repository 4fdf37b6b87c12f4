"""The client of the model server: seeds in, pixels out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from serving.errors import ModelMismatch, ModelTimeout, ModelUnavailable, Overloaded
from serving.messages import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    types_pb2,
)

log = logging.getLogger(__name__)

SIGNATURE = "generate"  # seeds int64[N] -> images uint8[N, H, W, 3]
STATUS_TIMEOUT_S = 1.0  # answered from memory in a millisecond; probes come every few seconds and must not pile up

CHANNEL_OPTIONS = (
    # The default is 4 MiB; 64 pictures of 256 x 256 are 12.6 MB as tensor_content, up to twice that in typed fields.
    ("grpc.max_receive_message_length", 64 * 2**20),
    # After a failed connection the default waits up to 120 s; a model server that is back should be noticed in one.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also the time one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that vanishes closes nothing. Without pings the kernel takes a quarter of an hour to notice.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The model server is a neighbour: never reached through the http_proxy of the environment.
    ("grpc.enable_http_proxy", 0),
)

# Every code but OK. What waiting can't mend is a mismatch: another model, another signature, another server.
ERRORS = MappingProxyType(
    {
        grpc.StatusCode.UNAVAILABLE: ModelUnavailable,  # no connection, or the batching queue is full
        grpc.StatusCode.NOT_FOUND: ModelUnavailable,  # nothing is loaded under this name or version
        grpc.StatusCode.CANCELLED: ModelUnavailable,  # we never cancel: the server is going away
        grpc.StatusCode.ABORTED: ModelUnavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: ModelTimeout,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,  # its threads are all busy
        grpc.StatusCode.FAILED_PRECONDITION: ModelMismatch,  # no such signature
        grpc.StatusCode.INVALID_ARGUMENT: ModelMismatch,  # other inputs than ours
        grpc.StatusCode.OUT_OF_RANGE: ModelMismatch,
        grpc.StatusCode.ALREADY_EXISTS: ModelMismatch,
        grpc.StatusCode.UNIMPLEMENTED: ModelMismatch,
        grpc.StatusCode.INTERNAL: ModelMismatch,
        grpc.StatusCode.DATA_LOSS: ModelMismatch,
        grpc.StatusCode.UNKNOWN: ModelMismatch,
        grpc.StatusCode.PERMISSION_DENIED: ModelMismatch,
        grpc.StatusCode.UNAUTHENTICATED: ModelMismatch,
    }
)


@dataclass(frozen=True, eq=False)  # arrays have no one truth to compare by
class Generated:
    """What one model version made of the seeds: one picture per seed, in order."""

    images: npt.NDArray[np.uint8]  # [N, H, W, 3], sRGB
    model_version: int


class ModelClient:
    """Asks one model of one model server. Threads may share it; processes may not: make it after the fork."""

    def __init__(self, target: str, model_name: str, *, predict_timeout_s: float) -> None:
        self._target = target
        self._model_name = model_name
        self._predict_timeout_s = predict_timeout_s
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; calls in flight end with ModelUnavailable."""
        self._channel.close()

    def generate(self, seeds: Sequence[int], *, model_version: int | None = None) -> Generated:
        """Return one picture per seed, in order, made by `model_version` or else by the newest one that is loaded.

        Raises ModelUnavailable, ModelTimeout, Overloaded or ModelMismatch. A server that is down fails at once, one
        that is slow after `predict_timeout_s`. Raises ValueError without a seed: a request of zero rows kills
        TensorFlow Serving.
        """
        if not seeds:
            raise ValueError("At least one seed is needed.")
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = SIGNATURE
        if model_version is not None:
            request.model_spec.version.value = model_version
        tensor = request.inputs["seeds"]
        tensor.dtype = types_pb2.DT_INT64
        tensor.tensor_shape.dim.add(size=len(seeds))
        tensor.int64_val.extend(seeds)
        try:
            response = self._predictions.Predict(request, timeout=self._predict_timeout_s)
        except grpc.RpcError as error:
            log.warning("Predict: %s: %s", error.code().name, error.details())
            raise ERRORS[error.code()](self._sentence(error)) from error
        if not response.model_spec.HasField("version"):
            raise ModelMismatch("The model server does not say which version of the model answered.")
        return Generated(_images(response, rows=len(seeds)), response.model_spec.version.value)

    def available_version(self) -> int:
        """Return the newest version that the model server has ready; raise ModelUnavailable if there is none to see."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        try:
            response = self._models.GetModelStatus(request, timeout=STATUS_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ModelUnavailable(self._sentence(error)) from error
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        versions: list[int] = [status.version for status in response.model_version_status if status.state == available]
        if not versions:
            raise ModelUnavailable(f"The model server at {self._target} has no version of {self._model_name!r} ready.")
        return max(versions)

    def _sentence(self, error: grpc.RpcError) -> str:
        """Return what the caller may know; the server's own text, with its addresses and nodes, is for the log."""
        return f"The model server at {self._target} answered {error.code().name} for model {self._model_name!r}."


def _images(response: Any, *, rows: int) -> npt.NDArray[np.uint8]:
    """Return uint8[rows, H, W, 3] from a PredictResponse; raise ModelMismatch if it holds anything else."""
    if "images" not in response.outputs:
        raise ModelMismatch(f"The model answered {sorted(response.outputs)}, not images.")
    tensor = response.outputs["images"]
    if tensor.dtype != types_pb2.DT_UINT8:
        raise ModelMismatch(f"The model answered images of {types_pb2.DataType.Name(tensor.dtype)}, not of DT_UINT8.")
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if len(shape) != 4 or shape[0] != rows or shape[3] != 3 or min(shape) < 1:
        raise ModelMismatch(f"The model answered images of the shape {shape}, not of ({rows}, height, width, 3).")
    # TensorFlow Serving up to 2.18 fills typed fields, later ones can do either. NumPy reads both by the buffer:
    # 0.2 ms for 256 x 256 in typed fields, where iterating takes 9 ms.
    if tensor.tensor_content:
        pixels = np.frombuffer(tensor.tensor_content, np.uint8)
    else:
        pixels = np.array(tensor.int_val, np.uint8)
    if pixels.size != np.prod(shape):
        raise ModelMismatch(f"The model answered {pixels.size} numbers for images of the shape {shape}.")
    return pixels.reshape(shape)
