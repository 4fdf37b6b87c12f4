"""A fake TensorFlow Serving on a socket; its images are integer arithmetic.

As a program, it accepts the flags that `serving.run` passes to tensorflow_model_server.
"""

import argparse
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any, Self

import grpc
import numpy as np

from serving.model_client import messages

HEIGHT, WIDTH = 6, 8
TensorProto = type(messages.predict_pb2.PredictRequest().inputs["any"])  # importing its module would import TensorFlow


def picture(seed: int, version: int = 1) -> np.ndarray:
    """Return uint8[HEIGHT, WIDTH, 3], different for each seed and version."""
    return pictures_of(latents([seed]), version)[0]


def latents(seeds: Sequence[int]) -> np.ndarray:
    """Return float32[N, 3] of different lengths and directions, as slerp needs."""
    numbers = np.array([seed % 65521 for seed in seeds], np.float32)
    return np.stack([numbers, np.ones_like(numbers), numbers % 7], axis=1)


def pictures_of(latents: np.ndarray, version: int) -> np.ndarray:
    """Return uint8[N, HEIGHT, WIDTH, 3] of latents float32[N, 3]."""
    place = np.arange(HEIGHT * WIDTH * 3).reshape(1, HEIGHT, WIDTH, 3)
    number = np.rint(latents[:, 0]).astype(np.int64).reshape(-1, 1, 1, 1)
    return ((place * 7 + number + 31 * version) % 251).astype(np.uint8)


def tensor(dtype: int, shape: Sequence[int], **values: Any) -> Any:
    return TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in shape]}, **values)


FIELDS = {
    "uint8": (messages.types_pb2.DT_UINT8, "int_val"),
    "int64": (messages.types_pb2.DT_INT64, "int64_val"),
    "float32": (messages.types_pb2.DT_FLOAT, "float_val"),
}


def answer(
    request: Any, *, version: int | None = None, as_content: bool = False, images: np.ndarray | None = None
) -> messages.predict_pb2.PredictResponse:
    """Return the response to `request`, in typed fields or in tensor_content.

    `version` replaces the request's, and `images` the images of `generate`.
    """
    if version is None:
        version = request.model_spec.version.value
    (sent,) = request.inputs.values()
    rows = np.frombuffer(sent.tensor_content, np.float32 if sent.dtype == messages.types_pb2.DT_FLOAT else np.int64)
    rows = rows.reshape([dim.size for dim in sent.tensor_shape.dim])
    match request.model_spec.signature_name:
        case "generate":
            outputs = {"images": pictures_of(latents(rows.tolist()), version) if images is None else images}
        case "serving_default":
            outputs = {"images": pictures_of(rows, version)}
        case "sample":
            outputs = {"latents": latents(rows.tolist())}
        case "golden":
            digests = [hashlib.sha256(picture(seed, version)).digest() for seed in rows % 64]
            outputs = {"seeds": rows % 64, "digests": np.array([list(digest) for digest in digests], np.uint8)}
    tensors = {}
    for name, values in outputs.items():
        dtype, field = FIELDS[values.dtype.name]
        content = {"tensor_content": values.tobytes()} if as_content else {field: values.ravel().tolist()}
        tensors[name] = tensor(dtype, values.shape, **content)
    spec = {"name": request.model_spec.name, "version": {"value": version}}
    return messages.predict_pb2.PredictResponse(model_spec=spec, outputs=tensors)


class StatusError(Exception):
    """Raised by a `reply` to send this grpc.StatusCode."""


def refusing(code: grpc.StatusCode, signature: str = "") -> Callable[[Any], Any]:
    """Return a reply that refuses `signature` with `code`, by default all."""

    def reply(request: Any) -> Any:
        if signature in ("", request.model_spec.signature_name):
            raise StatusError(code)
        return answer(request)

    return reply


def rendering_other_bytes(*changed: int) -> Callable[[Any], Any]:
    """Return a reply with one pixel of the images of seeds, by default of all, changed by 1."""

    def reply(request: Any) -> Any:
        if request.model_spec.signature_name != "generate":
            return answer(request)
        seeds = np.frombuffer(request.inputs["seeds"].tensor_content, np.int64)
        images = pictures_of(latents(seeds), request.model_spec.version.value)
        images[np.isin(seeds, changed or seeds), 0, 0, 0] ^= 1
        return answer(request, images=images)

    return reply


class LocalServer:
    """Serves in a `with` block what the functions `adders` of generated modules add of `servicer`."""

    def __init__(self, servicer: Any, *adders: Any, port: int = 0, threads: int = 4, options: Any = ()) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(threads), options=options)
        for add in adders:
            add(servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close all connections and the port; may be called again."""
        self._server.stop(grace=None).wait(timeout=5)


class FakeModelServer(
    LocalServer,
    messages.prediction_service_pb2_grpc.PredictionServiceServicer,
    messages.model_service_pb2_grpc.ModelServiceServicer,
):
    """Serves one model version in a `with` block; set `version` to swap.

    `reply` returns the response to a Predict request or raises StatusError.
    """

    def __init__(
        self,
        *,
        model_name: str = "apple",
        version: int = 1,
        port: int = 0,
        reply: Callable[[Any], Any] = answer,
        max_connection_age_s: float = math.inf,
    ) -> None:
        self.model_name = model_name
        self.version = version
        self.state = "AVAILABLE"
        self.reply = reply
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []  # of each request
        self._is_free = threading.Event()
        self._is_free.set()
        # Servers on one port share its connections: SO_REUSEPORT is gRPC's default.
        options = [("grpc.max_connection_age_ms", int(min(1000 * max_connection_age_s, 2**31 - 1)))]
        add_predictions = messages.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server
        add_models = messages.model_service_pb2_grpc.add_ModelServiceServicer_to_server
        super().__init__(self, add_predictions, add_models, port=port, options=options)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Delay all Predict calls until the `with` block ends."""
        self._is_free.clear()
        try:
            yield
        finally:
            self._is_free.set()

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's own name)
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self._is_free.wait(timeout=60)  # seconds
        spec = request.model_spec
        if spec.name != self.model_name or spec.version.value != self.version:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {spec.name}, version {spec.version.value}")
        try:
            return self.reply(request)
        except StatusError as refused:
            context.abort(*refused.args, "node 7 of 10.0.0.1")  # which no client may see

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_spec.name != self.model_name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
        status = {"version": self.version, "state": self.state}
        return messages.get_model_status_pb2.GetModelStatusResponse(model_version_status=[status])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model_name", required=True)
    chosen, _ = parser.parse_known_args()
    with FakeModelServer(port=chosen.port, model_name=chosen.model_name):
        threading.Event().wait(timeout=300)  # seconds; the tests' own limit
