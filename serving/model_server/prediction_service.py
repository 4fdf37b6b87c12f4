"""TensorFlow Serving's PredictionService and ModelService, as far as its clients here need them.

Status codes and messages are those of the real server, checked in its order. What runs the graphs is given.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from serving.model_client.messages import get_model_metadata_pb2, get_model_status_pb2, predict_pb2, types_pb2
from serving.model_server.versions import VersionWatcher

if TYPE_CHECKING:  # importing it imports TensorFlow
    from serving.model_server.servable import Servable

DEFAULT_SIGNATURE = "serving_default"  # what an empty signature name means
METADATA_FIELD = "signature_def"  # the only one there is
# What the batching parameters of every export allow: TensorFlow Serving, if it batches, refuses more. Forty bytes can
# claim a million rows of zeros, and painting those ended the process.
MAX_ROWS = 64
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

    def __init__(self, watcher: "VersionWatcher[Servable]", model_name: str, *, typed_fields: bool) -> None:
        self._watcher = watcher
        self._model_name = model_name
        self._typed_fields = typed_fields

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return what a grpc.Server needs; it answers UNIMPLEMENTED to the methods that are not among them."""
        predict = handler(self.predict, predict_pb2.PredictRequest)
        get_metadata = handler(self.get_model_metadata, get_model_metadata_pb2.GetModelMetadataRequest)
        get_status = handler(self.get_model_status, get_model_status_pb2.GetModelStatusRequest)
        predictions = {"Predict": predict, "GetModelMetadata": get_metadata}
        return (
            grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", predictions),
            grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", {"GetModelStatus": get_status}),
        )

    def predict(self, request: Message) -> Message:
        """Return a PredictResponse of the version that `request` names, or else of the newest; or raise Refusal."""
        version, servable = self._find(request)
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in servable.signature_defs:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = servable.signature_defs[name]
        inputs = decode_inputs(signature, request.inputs, servable.decode)
        chosen = choose_outputs(signature, request.output_filter)
        check_dtypes(signature, request.inputs)
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
            servable.encode(outputs[alias], response.outputs[alias], typed_fields=self._typed_fields)
        return response

    def get_model_metadata(self, request: Message) -> Message:
        """Return a version's signatures in a GetModelMetadataResponse, or raise Refusal."""
        check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != METADATA_FIELD:
                raise invalid(f"Metadata field {field} is not supported")
        version, servable = self._find(request)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self._model_name
        response.model_spec.version.value = version
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
        response.metadata[METADATA_FIELD].Pack(signatures)
        return response

    def get_model_status(self, request: Message) -> Message:
        """Return the state of the version that `request` names, or of every version ever seen; or raise Refusal."""
        check_spec(request)
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

    def _find(self, request: Message) -> "tuple[int, Servable]":
        """Return the version that `request` is for, and its servable, which stays usable when it is unloaded."""
        check_spec(request)
        spec = request.model_spec
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
    """Return a handler that ends a call with what `respond` returns or refuses, or INTERNAL if it fails."""

    def answer(request: bytes, context: grpc.ServicerContext) -> Message:
        try:
            return respond(request_class.FromString(request))
        except Refusal as refusal:
            code, text = refusal.code, str(refusal)
        except DecodeError:  # said by gRPC itself, it would be a traceback in the log for each
            code, text = grpc.StatusCode.INTERNAL, f"The bytes are no {request_class.DESCRIPTOR.name}."
        except Exception:  # its text may name paths and nodes, so it stays in our log
            log.exception("a call failed")
            code, text = grpc.StatusCode.INTERNAL, "The model server failed on this call; its log says why."
        return context.abort(code, text)  # raises

    return grpc.unary_unary_rpc_method_handler(
        answer,
        response_serializer=lambda response: response.SerializeToString(),
    )


def invalid(text: str) -> Refusal:
    """Return the refusal for a request that is wrong in itself."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


def check_spec(request: Message) -> None:
    """Refuse a request that names no model at all."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def decode_inputs(
    signature: Message, protos: Mapping[str, Message], decode: Callable[[Message], Any]
) -> dict[str, Any]:
    """Return the tensors of a request by name: exactly those that `signature` asks for."""
    sent, wanted = set(protos), set(signature.inputs)
    if len(sent) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({names(sent)}) != "
            f"len({names(wanted)}). Sent extra: {names(sent - wanted)}. "
            f"Missing but required: {names(wanted - sent)}."
        )
    tensors = {}
    for alias in sorted(wanted):
        if alias not in sent:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request "
                f"and no default value provided. Inputs expected to be in the request {names(sent)}, or default "
                "input alias set: "
            )
        try:
            tensors[alias] = decode(protos[alias])
        except ValueError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    return tensors


def choose_outputs(signature: Message, output_filter: Sequence[str]) -> list[str]:
    """Return the names of the outputs to answer with: those in `output_filter`, or all if it is empty."""
    chosen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {names(signature.outputs)}."
            )
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen.append(alias)
    return chosen or sorted(signature.outputs)


def check_dtypes(signature: Message, protos: Mapping[str, Message]) -> None:
    """Refuse tensors of other dtypes than `signature` has; shapes are for the graph's kernels to refuse."""
    for index, alias in enumerate(sorted(signature.inputs)):
        wanted, sent = signature.inputs[alias].dtype, protos[alias].dtype
        if sent != wanted:
            raise invalid(f"Expects arg[{index}] to be {dtype_name(wanted)} but {dtype_name(sent)} is provided")


def check_rows(protos: Mapping[str, Message]) -> None:
    """Refuse tensors of more than MAX_ROWS rows, in TensorFlow Serving's words."""
    for proto in protos.values():
        if proto.tensor_shape.dim and proto.tensor_shape.dim[0].size > MAX_ROWS:
            rows = proto.tensor_shape.dim[0].size
            raise invalid(f"Task size {rows} is larger than maximum input batch size {MAX_ROWS}")


def dtype_name(dtype: int) -> str:
    """Return TensorFlow's name for a DataType: "float" for DT_FLOAT."""
    return str(types_pb2.DataType.Name(dtype)).removeprefix("DT_").lower()


def names(aliases: Iterable[str]) -> str:
    """Return a set of names the way TensorFlow Serving writes it: {a,b}."""
    return "{" + ",".join(sorted(aliases)) + "}"
