"""The client of the model server: seeds in, pixels out."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from serving.errors import ModelMismatch, ModelTimeout, ModelUnavailable, Overloaded, RingoError, UnknownVersion
from serving.model_client.connection import open_channel, read_connection
from serving.model_client.messages import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    types_pb2,
)
from serving.runtime.connection_failures import connection_failure
from serving.telemetry.metrics import PREDICT_ROWS
from serving.telemetry.request_log import ABANDONED_CHECK_S, RECORD, check_client, stage
from serving.telemetry.tracing import trace_metadata

log = logging.getLogger(__name__)

VERIFIED = "proved"  # wire name in ETags, /about and the proto: golden images have the exporter's bytes
MAX_ROWS = 64  # of one request, as in the exporter's batching parameters
STATUS_TIMEOUT_S = 1.0  # the answer takes a millisecond; probes must not pile up

# gRPC resolves a name that is gone ever more rarely, up to every 120 s, and has no option for that. A new channel
# resolves at once, and then after 1 s and 2.6 s.
REOPEN_AFTER_S = 3.0

CHANNEL_OPTIONS = (
    # The default is 4 MiB; 64 images of 256 x 256 are 12.6 MB as tensor_content, up to twice that in typed fields.
    ("grpc.max_receive_message_length", 64 * 2**20),
    # The default waits up to 120 s after a failed connection; a restarted model server should be noticed within 1 s.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # The limit of one attempt to connect: below STATUS_TIMEOUT_S, so that its error is the one reported.
    ("grpc.min_reconnect_backoff_ms", 700),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that loses power closes no connection. Without pings the kernel notices after 15 minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # How long a name server may take; by default 120 s.
    ("grpc.dns_ares_query_timeout", 2_000),
    # The model server is in the same network: http_proxy does not apply.
    ("grpc.enable_http_proxy", 0),
)

# Any other status is a mismatch, of model, signature or server: a retry can't repair it.
ERRORS = {
    grpc.StatusCode.UNAVAILABLE: ModelUnavailable,  # no connection, or the batching queue is full
    grpc.StatusCode.NOT_FOUND: UnknownVersion,  # every request names one
    grpc.StatusCode.CANCELLED: ModelUnavailable,  # by the server, which is stopping
    grpc.StatusCode.ABORTED: ModelUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ModelTimeout,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,  # its threads are all busy
}

# The golden seeds [N], and the exporter's SHA-256 of their pixels [N, 32].
Golden = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8] | None]


class ConnectionChanged(Exception):
    """The checked connection has ended; another model server may answer now."""


class ModelClient:
    """Client of one model; thread-safe; create it after the fork.

    Every method raises ModelUnavailable, ModelTimeout, Overloaded or ModelMismatch: at once if the server is down, else
    after `predict_timeout_s` or at `deadline_s` (time.monotonic), whichever is earlier. Methods with a version raise
    UnknownVersion if it is not loaded, and ClientGone if their call is not shared with other requests. A call has 1 to
    MAX_ROWS rows. Zero rows raise ValueError, because they kill TensorFlow Serving.
    """

    def __init__(self, target: str, model_name: str, *, predict_timeout_s: float) -> None:
        self._target = target
        self._model_name = model_name
        self._predict_timeout_s = predict_timeout_s
        self.answered_at_s = -math.inf  # when a Predict was last answered, by time.monotonic
        self.connection: int | None = None  # as `read_connection` found it last
        self._lock = threading.Lock()  # guards the fields below
        self._channels: list[grpc.Channel] = []  # the one in use is the last
        self._unavailable_since_s: float | None = None  # or since the last channel was opened
        self._open()

    def _open(self) -> None:
        channel, self._channel_id = open_channel(self._target, CHANNEL_OPTIONS)
        self._channels.append(channel)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)

    def _record_status(self, *, is_available: bool) -> None:
        """Open a new channel after REOPEN_AFTER_S without a server."""
        with self._lock:
            now_s = time.monotonic()
            if is_available:
                self._unavailable_since_s = None
            elif self._unavailable_since_s is None:
                self._unavailable_since_s = now_s
            elif now_s - self._unavailable_since_s >= REOPEN_AFTER_S:
                self._unavailable_since_s = now_s
                self._open()
                if len(self._channels) > 2:  # the last but one may have calls in flight
                    self._channels.pop(0).close()

    def close(self) -> None:
        """Close the channels; calls in flight end with ModelUnavailable."""
        with self._lock:
            for channel in self._channels:
                channel.close()

    def read_connection(self) -> int | None:
        """Return the number of the current connection, None if there is none."""
        self.connection = read_connection(self._channel_id)
        return self.connection

    def require_connection(self, connection: int) -> None:
        """Raise ConnectionChanged unless `connection` has carried all calls since its reading."""
        if self.read_connection() != connection:
            raise ConnectionChanged(f"Connection {connection} to {self._target} has ended.")

    def generate(
        self, version: int, seeds: Sequence[int], *, deadline_s: float = math.inf, is_shared: bool = True
    ) -> npt.NDArray[np.uint8]:
        """Return one image per seed, in order: uint8[N, H, W, 3], sRGB."""
        response = self._predict(version, "generate", "seeds", np.array(seeds, np.int64), deadline_s, is_shared)
        return _array(response, IMAGES, rows=len(seeds))

    def sample(self, version: int, seeds: Sequence[int], *, deadline_s: float = math.inf) -> npt.NDArray[np.float32]:
        """Return one latent per seed, in order: float32[N, latent_dim]."""
        response = self._predict(version, "sample", "seeds", np.array(seeds, np.int64), deadline_s)
        return _array(response, LATENTS, rows=len(seeds))

    def paint(
        self, version: int, latents: npt.NDArray[np.float32], *, deadline_s: float = math.inf
    ) -> npt.NDArray[np.uint8]:
        """Return one image per latent float32[N, latent_dim]: uint8[N, H, W, 3], sRGB."""
        response = self._predict(version, "serving_default", "latents", latents, deadline_s)
        return _array(response, IMAGES, rows=len(latents))

    def golden(self, version: int) -> Golden:
        """Return golden seeds and digests; without digests, 0 to 63 and None."""
        response = self._predict(version, "golden", "index", np.arange(MAX_ROWS), is_shared=True)
        if response is None:
            return np.arange(MAX_ROWS), None
        return _array(response, SEEDS, rows=MAX_ROWS), _array(response, DIGESTS, rows=MAX_ROWS)

    def available_versions(self) -> list[int]:
        """Return the versions that the model server has ready, oldest first.

        Raises ModelUnavailable without any, ModelTimeout after STATUS_TIMEOUT_S, or Overloaded.
        """
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": self._model_name})
        try:
            response = self._models.GetModelStatus(request, timeout=STATUS_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._record_status(is_available=False)
            kind = ERRORS.get(error.code(), ModelMismatch)
            if kind not in (ModelTimeout, Overloaded):
                kind = ModelUnavailable
            found = kind(self._sentence(error))
            found.add_note(_cause("GetModelStatus", error))
            raise found from error
        self._record_status(is_available=True)
        self.read_connection()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        versions = sorted(status.version for status in response.model_version_status if status.state == available)
        if not versions:
            raise ModelUnavailable(f"The model server at {self._target} has no version of {self._model_name!r} ready.")
        return versions

    def _predict(
        self,
        version: int,
        signature: str,
        name: str,
        values: npt.NDArray[Any],
        deadline_s: float = math.inf,
        is_shared: bool = False,
    ) -> Any:
        """Return the response of `signature` to `values`; None without golden digests."""
        if not len(values):
            raise ValueError("At least one row is needed.")
        timeout_s = min(self._predict_timeout_s, deadline_s - time.monotonic())
        if timeout_s <= 0:
            raise ModelTimeout("The deadline passed before the model could be called; try again later.")
        spec = {"name": self._model_name, "version": {"value": version}, "signature_name": signature}
        request = predict_pb2.PredictRequest(model_spec=spec)
        tensor = request.inputs[name]
        tensor.dtype = types_pb2.DT_INT64 if values.dtype == np.int64 else types_pb2.DT_FLOAT
        for size in values.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = values.tobytes()
        PREDICT_ROWS.labels(signature).observe(len(values))
        predict = self._predictions.Predict if is_shared else self._predict_alone  # which takes 0.2 ms more
        try:
            with stage("model", signature=signature, rows=len(values), version=version):
                response = predict(request, timeout=timeout_s, metadata=trace_metadata())
        except grpc.RpcError as error:
            if signature == "golden" and error.code() is grpc.StatusCode.FAILED_PRECONDITION:  # no such signature
                return None
            raise self._domain_error(error, version) from error
        self.answered_at_s = time.monotonic()
        if response.model_spec.version.value != version:
            found = response.model_spec.version.value
            raise ModelMismatch(f"The model server answered as version {found}, not as version {version}.")
        return response

    def _predict_alone(self, request: Any, **options: Any) -> Any:
        """Return the response; cancel and raise ClientGone if the client disconnects."""
        call = self._predictions.Predict.future(request, **options)
        try:
            while True:
                with suppress(grpc.FutureTimeoutError):
                    return call.result(ABANDONED_CHECK_S)
                check_client()
        finally:
            call.cancel()  # changes nothing if the call has ended

    def _domain_error(self, error: grpc.RpcError, version: int) -> RingoError:
        kind = ERRORS.get(error.code(), ModelMismatch)
        missing = f"The model server has no version {version} of {self._model_name!r} loaded."
        found = kind(missing if kind is UnknownVersion else self._sentence(error))
        cause = _cause("Predict", error)
        found.add_note(cause)  # for the request's log line
        if RECORD.get() is None:
            log.warning("%s", cause)
        return found

    def _sentence(self, error: grpc.RpcError) -> str:
        """Return the client's message without gRPC's text, which names addresses and nodes."""
        if failure := connection_failure(error):
            return f"The model server at {self._target} does not answer: {failure[0]}."
        return f"The model server at {self._target} answered {error.code().name} for model {self._model_name!r}."


def _cause(method: str, error: grpc.RpcError) -> str:
    return f"{method}: {error.code().name}: {error.details()}"


@dataclass(frozen=True)
class Output:
    """Name, type and shape of an output of the SavedModel contract."""

    name: str
    dtype: type[np.generic]
    data_type: int  # TensorFlow's number for it
    field: str  # of a TensorProto, where TensorFlow Serving up to 2.18 puts the numbers
    row: tuple[int | str, ...]  # the shape of a row: numbers, and names of sizes that the model chooses


IMAGES = Output("images", np.uint8, types_pb2.DT_UINT8, "int_val", ("height", "width", 3))
LATENTS = Output("latents", np.float32, types_pb2.DT_FLOAT, "float_val", ("latent_dim",))
SEEDS = Output("seeds", np.int64, types_pb2.DT_INT64, "int64_val", ())
DIGESTS = Output("digests", np.uint8, types_pb2.DT_UINT8, "int_val", (32,))


def _array(response: Any, output: Output, *, rows: int) -> npt.NDArray[Any]:
    """Return `output` of a PredictResponse, [rows, ...]; or raise ModelMismatch."""
    name = output.name
    if name not in response.outputs:
        raise ModelMismatch(f"The model answered {sorted(response.outputs)}, not {name}.")
    tensor = response.outputs[name]
    if tensor.dtype != output.data_type:
        found, expected = types_pb2.DataType.Name(tensor.dtype), types_pb2.DataType.Name(output.data_type)
        raise ModelMismatch(f"The model answered {name} of {found}, not of {expected}.")
    shape, wanted = tuple(dim.size for dim in tensor.tensor_shape.dim), (rows, *output.row)
    fits = all(size > 0 if isinstance(want, str) else size == want for size, want in zip(shape, wanted, strict=False))
    if len(shape) != len(wanted) or not fits:
        raise ModelMismatch(f"The model answered {name} of the shape {shape}, not of ({', '.join(map(str, wanted))}).")
    # TensorFlow Serving up to 2.18 fills typed fields, later ones can do either. NumPy reads both by the buffer:
    # 0.2 ms for 256 x 256 in typed fields, where iterating takes 9 ms.
    try:
        if tensor.tensor_content:
            return np.frombuffer(tensor.tensor_content, output.dtype).reshape(shape)
        return np.array(getattr(tensor, output.field), output.dtype).reshape(shape)
    except ValueError as error:
        raise ModelMismatch(f"The model answered {name} of the shape {shape} with another number of values.") from error
