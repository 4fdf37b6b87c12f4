"""Status codes and messages of the embedded model server, as TensorFlow Serving's."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving.model_client import messages
from tests.conftest import LIMIT_S
from tests.fake_model_server import tensor
from tests.hosted_model_server import LATENT_DIM, Hosted, from_latents, generate, hosting, images, inputs, save_model


@pytest.fixture(scope="module")
def hosted(tmp_path_factory) -> Iterator[Hosted]:
    """Version 7 of apple, with shade 10, which no test changes."""
    base_path = tmp_path_factory.mktemp("hosted")
    save_model(base_path / "7", 10)
    with hosting(base_path) as hosted:
        yield hosted


def test_response_names_version_and_signature_when_the_request_does_not(hosted):
    spec = hosted.predict(from_latents()).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("apple", 7, "serving_default")


@pytest.mark.parametrize(
    ("values", "meant"), [(np.arange(16), np.arange(16)), ([], np.zeros(16)), ([0.25, 0.5], [0.25] + [0.5] * 15)]
)
def test_typed_fields_give_equal_images_also_when_values_are_missing(hosted, values, meant):
    content = from_latents(tensor_content=np.array(meant, np.float32).tobytes())
    assert hosted.predict(from_latents(float_val=values)) == hosted.predict(content)


def test_images_are_equal_when_the_response_has_typed_fields_or_no_rows(hosted):
    with hosting(hosted.base_path, typed_fields=True) as typed:
        response = typed.predict(generate([1, 2]))
        for server in (hosted, typed):
            assert images(server.predict(generate([]))).shape == (0, 2, 2, 3)
    assert not response.outputs["images"].tensor_content
    assert (images(response) == images(hosted.predict(generate([1, 2])))).all()


def test_metadata_has_the_signatures_with_names_dtypes_and_shapes(hosted):
    response = hosted.predictions.GetModelMetadata(MetadataRequest(**SIGNATURES, **NAMED), timeout=LIMIT_S)
    signatures = messages.get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    seeds = signatures.signature_def["generate"].inputs["seeds"]
    assert (response.model_spec.name, response.model_spec.version.value) == ("apple", 7)
    assert (seeds.dtype, [dim.size for dim in seeds.tensor_shape.dim]) == (messages.types_pb2.DT_INT64, [-1])


def spec(request: Any, *, version: int | None = None, **fields: Any) -> Any:
    """Return `request` for another model, version, label or signature."""
    if version is not None:
        request.model_spec.version.value = version
    for field, value in fields.items():
        setattr(request.model_spec, field, value)
    return request


FLOATS = tensor(messages.types_pb2.DT_FLOAT, [1, LATENT_DIM])
INTS = tensor(messages.types_pb2.DT_INT32, [1], int_val=[1])
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
MetadataRequest = messages.get_model_metadata_pb2.GetModelMetadataRequest
StatusRequest = messages.get_model_status_pb2.GetModelStatusRequest
ReloadConfigRequest = messages.model_management_pb2.ReloadConfigRequest
ClassificationRequest = messages.classification_pb2.ClassificationRequest
MultiInferenceRequest = messages.inference_pb2.MultiInferenceRequest
NAMED, OTHER = {"model_spec": {"name": "apple"}}, {"model_spec": {"name": "nope"}}
SIGNATURES = {"metadata_field": ["signature_def"]}
REGRESSION = {**NAMED, "method_name": "tensorflow/serving/regress"}
NEW_CONFIG = {"model_config_list": {"config": [{"name": "other", "base_path": "/tmp"}]}}

# Measured on TensorFlow Serving: request, status, beginning of the sentence
REFUSED = [
    (messages.predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
    (spec(generate([1]), name="", version_label="stable"), INVALID, "ModelSpec has no name specified."),
    (spec(generate([1]), version_label="stable"), INVALID, "Unrecognized servable version label: stable"),
    (spec(generate([1]), name="nope"), NOT_FOUND, "Servable not found for request: Latest(nope)"),
    (spec(generate([1]), name="nope", version=7), NOT_FOUND, "Servable not found for request: Specific(nope, 7)"),
    (spec(generate([1]), version=0), NOT_FOUND, "Servable not found for request: Specific(apple, 0)"),
    (spec(inputs(), signature_name="nosig"), PRECONDITION, 'Serving signature key "nosig" not found.'),
    (from_latents(shape=[2**17, LATENT_DIM]), INVALID, "Task size 131072 is larger than maximum input batch size"),
    (inputs(), INVALID, "input size does not match signature: 0!=1 len({}) != len({latents})."),
    (inputs(latents=FLOATS, noise=FLOATS), INVALID, "input size does not match signature: 2!=1 len({latents,noise})"),
    (inputs(noise=FLOATS), INVALID, "Signature input alias: latents(feed name: serving_default_latents:0) not found"),
    (spec(inputs(seeds=INTS), signature_name="generate"), INVALID, "Expects arg[0] to be int64 but int32 is provided"),
    (from_latents(dtype=messages.types_pb2.DT_DOUBLE), INVALID, "Expects arg[0] to be float but double is provided"),
    (from_latents(shape=[2, 9]), INVALID, "Matrix size-incompatible: In[0]: [2,9], In[1]: [8,12]"),
    (from_latents(shape=[LATENT_DIM]), INVALID, "In[0] ndims must be >= 2"),
    (from_latents(tensor_content=b"abc"), INVALID, "tensor parsing error: latents"),
    (from_latents(dtype=messages.types_pb2.DT_INVALID), INVALID, "tensor parsing error: latents"),
    (from_latents(dtype=200), INVALID, "tensor parsing error: latents"),
    (from_latents(shape=[-2, LATENT_DIM], float_val=[1]), INVALID, "tensor parsing error: latents"),
    (from_latents(shape=[2**26, LATENT_DIM], float_val=[1]), INVALID, "tensor parsing error: latents"),
    (inputs(latents=FLOATS, output_filter=["nope"]), INVALID, "output tensor alias not found in signature: nope Out"),
    (inputs(latents=FLOATS, output_filter=["images"] * 2), INVALID, "duplicate output tensor alias: images"),
    (StatusRequest(), INVALID, "Missing ModelSpec"),
    (StatusRequest(**OTHER), NOT_FOUND, "Could not find any versions of model nope"),
    (spec(StatusRequest(**NAMED), version=99), NOT_FOUND, "Could not find version 99 of model apple"),
    (MetadataRequest(), INVALID, "Missing ModelSpec"),
    (MetadataRequest(**NAMED), INVALID, "GetModelMetadataRequest must specify at least one metadata_field"),
    (MetadataRequest(metadata_field=["x"], **NAMED), INVALID, "Metadata field x is not supported"),
    (MetadataRequest(**SIGNATURES, **OTHER), NOT_FOUND, "Servable not found for request: Latest(nope)"),
    (ClassificationRequest(**NAMED), INVALID, "No classification inputs found in SignatureDef: "),
    (messages.regression_pb2.RegressionRequest(**NAMED), INVALID, "No regression inputs found in SignatureDef: "),
    (MultiInferenceRequest(), INVALID, "ModelSpec has no name specified."),
    (MultiInferenceRequest(tasks=[REGRESSION]), INVALID, "No regression inputs found in SignatureDef: "),
    (ReloadConfigRequest(config={}), INVALID, "ServerModelConfig type not supported by HandleReloadConfigRequest."),
    (ReloadConfigRequest(config=NEW_CONFIG), INVALID, "The embedded model server takes its configuration from the"),
]


@pytest.mark.parametrize(("request_", "code", "sentence"), REFUSED)
def test_model_server_refuses_requests_as_tensorflow_serving_does(hosted, request_, code, sentence):
    found, details = hosted.refusal_of(request_)
    assert (found, details[: len(sentence)]) == (code, sentence)


def test_unexpected_error_is_internal_and_its_cause_is_in_the_log_only(hosted, caplog):
    init = spec(inputs(), signature_name="__saved_model_init_op")  # in the metadata, but not callable
    sentence = "The model server failed on this call; its log says why."
    assert hosted.refusal_of(init) == (grpc.StatusCode.INTERNAL, sentence)
    assert "Traceback" in caplog.text
    assert "__saved_model_init_op" in caplog.text
