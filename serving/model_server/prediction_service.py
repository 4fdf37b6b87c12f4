"""Predict and GetModelStatus of TensorFlow Serving; its other methods are UNIMPLEMENTED.

Status codes, and most messages, are those of TensorFlow Serving, in its order.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from serving.model_client.messages import get_model_status_pb2, predict_pb2
from serving.model_server.versions import VersionWatcher

if TYPE_CHECKING:  # importing it imports TensorFlow
    from serving.model_server.servable import Servable

DEFAULT_SIGNATURE = "serving_default"  # what an empty signature name means
# TensorFlow Serving has no limit unless it batches. Forty bytes can claim a million rows of zeros, whose images are
# 12 GB; the images of 16,384 rows, of 64 x 64 pixels, are 201 MB.
MAX_ROWS = 16_384
UNKNOWN_ERROR = 2  # google.rpc.Code.UNKNOWN, for a version that could not be loaded

log = logging.getLogger(__name__)
Message = Any  # the generated classes carry no types


class Refusal(Exception):
    """The call ends with `code`; the text is TensorFlow Serving's."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class PredictionService:
    """Answers for the versions of `watcher` as the model `model_name`. Threads may share it."""

    def __init__(self, watcher: "VersionWatcher[Servable]", model_name: str) -> None:
        self._watcher = watcher
        self._model_name = model_name

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the methods of both services, for a grpc.Server."""
        return (
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.PredictionService", {"Predict": handler(self.predict, predict_pb2.PredictRequest)}
            ),
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.ModelService",
                {"GetModelStatus": handler(self.get_model_status, get_model_status_pb2.GetModelStatusRequest)},
            ),
        )

    def predict(self, request: Message) -> Message:
        """Return a PredictResponse of the requested or newest version; or raise Refusal."""
        version, servable = self._find(request.model_spec)
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in servable.signature_defs:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = servable.signature_defs[name]
        inputs = decode_inputs(signature, request.inputs, servable.decode)
        chosen = choose_outputs(signature, request.output_filter)
        check_rows(request.inputs)
        try:
            outputs = servable.run(name, inputs)
        except ValueError as error:
            raise invalid(str(error)) from error
        except MemoryError as error:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._model_name
        response.model_spec.version.value = version
        response.model_spec.signature_name = name
        for alias in chosen:
            servable.encode(outputs[alias], response.outputs[alias])
        return response

    def get_model_status(self, request: Message) -> Message:
        """Return the state of the requested or of all versions; or raise Refusal."""
        spec = request.model_spec
        statuses = self._watcher.snapshot.statuses if spec.name == self._model_name else {}
        versions = [spec.version.value] if spec.HasField("version") else sorted(statuses, reverse=True)
        if not versions:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in versions:
            if version not in statuses:
                text = f"Could not find version {version} of model {spec.name}"
                raise Refusal(grpc.StatusCode.NOT_FOUND, text)
            error = statuses[version].error
            added = response.model_version_status.add(version=version, state=int(statuses[version].state))
            added.status.error_code = 0 if error is None else UNKNOWN_ERROR
            added.status.error_message = error or ""
        return response

    def _find(self, spec: Message) -> "tuple[int, Servable]":
        """Return the requested or newest version, and its servable."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.HasField("version_label"):
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        servables = self._watcher.snapshot.servables if spec.name == self._model_name else {}
        version = spec.version.value if spec.HasField("version") else max(servables, default=None)
        if version is None or version not in servables:
            asked = f"Specific({spec.name}, {version})" if spec.HasField("version") else f"Latest({spec.name})"
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        return version, servables[version]


def handler(respond: Callable[[Message], Message], request_class: Any) -> grpc.RpcMethodHandler:
    """Return a handler that calls `respond`; an unexpected error is INTERNAL."""

    def answer(request: bytes, context: grpc.ServicerContext) -> Message:
        try:
            return respond(request_class.FromString(request))
        except Refusal as refusal:
            code, text = refusal.code, str(refusal)
        except DecodeError:  # gRPC itself would log a traceback
            code, text = grpc.StatusCode.INTERNAL, f"The bytes are no {request_class.DESCRIPTOR.name}."
        except Exception:  # its text may name paths and nodes, so it is in the log only
            log.exception("a call failed")
            code, text = grpc.StatusCode.INTERNAL, "The model server failed on this call; its log says why."
        return context.abort(code, text)  # raises

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=lambda response: response.SerializeToString()
    )


def invalid(text: str) -> Refusal:
    """Return the refusal for a request that is wrong in itself."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


def decode_inputs(
    signature: Message, protos: Mapping[str, Message], decode: Callable[[Message], Any]
) -> dict[str, Any]:
    """Return the tensors of a request by name: exactly those of `signature`. Shapes are for the graph to check."""
    if set(protos) != set(signature.inputs):
        raise invalid(f"The signature takes {names(signature.inputs)}; the request has {names(protos)}.")
    tensors = {}
    for alias, proto in protos.items():
        try:
            tensors[alias] = decode(proto)
        except ValueError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    return tensors


def choose_outputs(signature: Message, output_filter: Sequence[str]) -> list[str]:
    """Return the names of the outputs in `output_filter`, all if it is empty."""
    for alias in output_filter:
        if alias not in signature.outputs:
            expected = f"Outputs expected to be in the set {names(signature.outputs)}."
            raise invalid(f"output tensor alias not found in signature: {alias} {expected}")
    return list(output_filter) or sorted(signature.outputs)


def check_rows(protos: Mapping[str, Message]) -> None:
    """Refuse tensors of more than MAX_ROWS rows, in TensorFlow Serving's words."""
    for proto in protos.values():
        if proto.tensor_shape.dim and proto.tensor_shape.dim[0].size > MAX_ROWS:
            rows = proto.tensor_shape.dim[0].size
            raise invalid(f"Task size {rows} is larger than maximum input batch size {MAX_ROWS}")


def names(aliases: Iterable[str]) -> str:
    """Return a set of names the way TensorFlow Serving writes it: {a,b}."""
    return "{" + ",".join(sorted(aliases)) + "}"
