"""TensorFlow Serving's PredictionService and ModelService, as Ringo's clients need them.

Requests are checked in TensorFlow Serving's order; status codes and messages are its own.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from serving.model_client.messages import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
    types_pb2,
)
from serving.model_server.versions import VersionWatcher

if TYPE_CHECKING:  # importing it imports TensorFlow
    from serving.model_server.servable import Servable

DEFAULT_SIGNATURE = "serving_default"  # of a request without a signature name
METADATA_FIELD = "signature_def"  # the only one there is
# TensorFlow Serving has no limit unless it batches. Forty bytes can claim a million rows of zeros, whose images are
# 12 GB; the images of 16,384 rows, of 64 x 64 pixels, are 201 MB.
MAX_ROWS = 16_384
# The kind of a signature with tf.Examples, by its method name.
EXAMPLE_METHODS = {"tensorflow/serving/classify": "classification", "tensorflow/serving/regress": "regression"}

log = logging.getLogger(__name__)
Message = Any  # the generated classes carry no types


class Refusal(Exception):
    """Ends a call with the code and TensorFlow Serving's text in `args`."""


class PredictionService:
    """Answers for the versions of `watcher` as `model_name`; thread-safe."""

    def __init__(self, watcher: VersionWatcher, model_name: str, *, typed_fields: bool) -> None:
        self._watcher = watcher
        self._model_name = model_name
        self._typed_fields = typed_fields

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return all methods of both services, for a grpc.Server."""
        classify = partial(self.refuse_examples, "classification")
        predictions = {
            "Predict": handler(self.predict, predict_pb2.PredictRequest),
            "GetModelMetadata": handler(self.get_model_metadata, get_model_metadata_pb2.GetModelMetadataRequest),
            "Classify": handler(classify, classification_pb2.ClassificationRequest),
            "Regress": handler(partial(self.refuse_examples, "regression"), regression_pb2.RegressionRequest),
            "MultiInference": handler(self.multi_inference, inference_pb2.MultiInferenceRequest),
        }
        models = {
            "GetModelStatus": handler(self.get_model_status, get_model_status_pb2.GetModelStatusRequest),
            "HandleReloadConfigRequest": handler(refuse_config, model_management_pb2.ReloadConfigRequest),
        }
        return (
            grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", predictions),
            grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", models),
        )

    def predict(self, request: Message) -> Message:
        """Return a PredictResponse of the named or newest version; or raise Refusal."""
        check_spec(request)
        version, servable = self._find(request.model_spec)
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in servable.signature_defs:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = servable.signature_defs[name]
        inputs = decode_inputs(signature, request.inputs, servable.decode)
        chosen = choose_outputs(signature, request.output_filter)
        check_tensors(signature, request.inputs)
        try:
            outputs = servable.run(name, inputs)
        except ValueError as error:
            raise invalid(str(error)) from error
        except MemoryError as error:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        spec = {"name": self._model_name, "version": {"value": version}, "signature_name": name}
        response = predict_pb2.PredictResponse(model_spec=spec)
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
        version, servable = self._find(request.model_spec)
        spec = {"name": self._model_name, "version": {"value": version}}
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=spec)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
        response.metadata[METADATA_FIELD].Pack(signatures)
        return response

    def get_model_status(self, request: Message) -> Message:
        """Return the state of one version or all; or raise Refusal."""
        check_spec(request)
        spec = request.model_spec
        statuses = self._watcher.statuses if spec.name == self._model_name else {}
        versions = [spec.version.value] if spec.HasField("version") else sorted(statuses, reverse=True)
        if not versions:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in versions:
            if version not in statuses:
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {spec.name}")
            error = statuses[version].error
            status = {"error_code": 2 if error else 0, "error_message": error}  # google.rpc.Code.UNKNOWN
            response.model_version_status.add(version=version, state=statuses[version].state, status=status)
        return response

    def multi_inference(self, request: Message) -> Message:
        """Raise Refusal, for the first task in `request`."""
        task = request.tasks[0] if request.tasks else inference_pb2.InferenceTask()
        self._find(task.model_spec)
        if task.method_name not in EXAMPLE_METHODS:
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        self.refuse_examples(EXAMPLE_METHODS[task.method_name], task)

    def refuse_examples(self, kind: str, request: Message) -> NoReturn:
        """Raise Refusal: no signature takes tf.Examples, for classification or regression."""
        check_spec(request)
        _, servable = self._find(request.model_spec)
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in servable.signature_defs:
            raise invalid(f"No signature was found with the name: {name}")
        raise invalid(f"No {kind} inputs found in SignatureDef: {servable.signature_defs[name]}")

    def _find(self, spec: Message) -> "tuple[int, Servable]":
        """Return the version that `spec` names, and its servable."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.HasField("version_label"):
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        servables = self._watcher.servables if spec.name == self._model_name else {}
        version = spec.version.value if spec.HasField("version") else max(servables, default=None)
        if version is None or version not in servables:
            wanted = f"Specific({spec.name}, {version})" if spec.HasField("version") else f"Latest({spec.name})"
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return version, servables[version]


def handler(respond: Callable[[Message], Message], request_class: Any) -> grpc.RpcMethodHandler:
    """Return a handler that responds by `respond`; an unexpected error is INTERNAL."""

    def answer(request: bytes, context: grpc.ServicerContext) -> Message:
        try:
            return respond(request_class.FromString(request))
        except Refusal as refusal:
            code, text = refusal.args
        except DecodeError:  # gRPC itself would log a traceback for each
            code, text = grpc.StatusCode.INTERNAL, f"The bytes are no {request_class.DESCRIPTOR.name}."
        except Exception:  # its text may name paths and nodes: for the log only
            log.exception("a call failed")
            code, text = grpc.StatusCode.INTERNAL, "The model server failed on this call; its log says why."
        return context.abort(code, text)  # raises

    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=lambda message: message.SerializeToString())


def refuse_config(request: Message) -> Message:
    """Raise Refusal: only the command line configures this server."""
    raise invalid(
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
        if request.config.WhichOneof("config") is None
        else "The embedded model server takes its configuration from the command line alone."
    )


def invalid(text: str) -> Refusal:
    """Return the refusal of an invalid request."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


def check_spec(request: Message) -> None:
    """Refuse a request without a model."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def decode_inputs(signature: Message, protos: Mapping[str, Message], decode: Callable[..., Any]) -> dict[str, Any]:
    """Return the tensors of a request by name: the inputs of `signature`."""
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
    """Return the outputs that `output_filter` names; all if it is empty."""
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


def check_tensors(signature: Message, protos: Mapping[str, Message]) -> None:
    """Refuse other dtypes than the signature's, and more than MAX_ROWS rows."""
    for index, alias in enumerate(sorted(signature.inputs)):
        wanted, sent = signature.inputs[alias].dtype, protos[alias].dtype
        if sent != wanted:
            expected, found = (types_pb2.DataType.Name(one).removeprefix("DT_").lower() for one in (wanted, sent))
            raise invalid(f"Expects arg[{index}] to be {expected} but {found} is provided")
        rows = next((dim.size for dim in protos[alias].tensor_shape.dim), 0)
        if rows > MAX_ROWS:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {MAX_ROWS}")


def names(aliases: Iterable[str]) -> str:
    """Return a set of names as TensorFlow Serving writes it: {a,b}."""
    return "{" + ",".join(sorted(aliases)) + "}"
