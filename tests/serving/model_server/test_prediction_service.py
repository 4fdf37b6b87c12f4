"""What the embedded model server answers: the codes and messages that the real one was measured to answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

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
from serving.model_server.versions import VersionState
from tests.conftest import LIMIT_S
from tests.hosted_model_server import (
    INVALID,
    LATENT_DIM,
    NOT_FOUND,
    Hosted,
    from_latents,
    generate,
    hosting,
    images,
    publish,
    refusal_of,
    save_model,
    statuses,
    tensor,
)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> Path:
    """A SavedModel with shade 10."""
    folder = tmp_path_factory.mktemp("saved") / "10"
    save_model(folder, 10)
    return folder


@pytest.fixture(scope="module")
def hosted(saved_model, tmp_path_factory) -> Iterator[Hosted]:
    """Version 7 of apple, which no test changes."""
    base_path = tmp_path_factory.mktemp("hosted")
    publish(saved_model, base_path, "7")
    with hosting(base_path) as hosted:
        yield hosted


def test_a_response_names_model_version_and_signature_even_if_the_request_left_them_empty(hosted):
    spec = hosted.predict(from_latents()).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("apple", 7, "serving_default")


def test_generate_is_serving_default_after_sample(hosted):
    request = generate([3, 5, 2**62])
    pictures = images(hosted.predict(request))
    request.model_spec.signature_name = "sample"
    latents = hosted.predict(request).outputs["latents"]
    again = from_latents()
    again.inputs["latents"].CopyFrom(latents)
    assert pictures.shape == (3, 2, 2, 3)
    assert (images(hosted.predict(again)) == pictures).all()


def test_tensor_content_and_typed_fields_mean_the_same(hosted):
    latents = np.linspace(0, 1, 2 * LATENT_DIM, dtype=np.float32)
    content = hosted.predict(from_latents(tensor_content=latents.tobytes()))
    assert content == hosted.predict(from_latents(float_val=latents))


@pytest.mark.parametrize(
    ("values", "meant"), [([], 0.0), ([0.25], 0.25)], ids=["none are zeros", "the last is repeated"]
)
def test_fewer_values_than_the_shape_says_are_filled_up(hosted, values, meant):
    full = from_latents(float_val=[meant] * 2 * LATENT_DIM)
    assert hosted.predict(from_latents(float_val=values)) == hosted.predict(full)


def test_no_rows_give_no_rows(hosted):
    assert images(hosted.predict(generate([]))).shape == (0, 2, 2, 3)


def test_typed_fields_on_request_carry_the_same_images(saved_model, tmp_path, hosted):
    publish(saved_model, tmp_path, "7")
    with hosting(tmp_path, typed_fields=True) as typed:
        response = typed.predict(generate([1, 2]))
    assert not response.outputs["images"].tensor_content
    assert (images(response) == images(hosted.predict(generate([1, 2])))).all()


def test_concurrent_calls_agree(hosted):
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(hosted.predict, [generate([1, 2, 3])] * 200))
    assert all(response == responses[0] for response in responses)


def test_metadata_has_the_signatures_with_names_dtypes_and_shapes(hosted):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "apple"
    response = hosted.predictions.GetModelMetadata(request, timeout=LIMIT_S)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    seeds = signatures.signature_def["generate"].inputs["seeds"]
    assert (response.model_spec.name, response.model_spec.version.value) == ("apple", 7)
    assert (seeds.dtype, [dim.size for dim in seeds.tensor_shape.dim]) == (types_pb2.DT_INT64, [-1])


def test_the_status_of_a_loaded_version_is_available(hosted):
    (status,) = statuses(hosted)
    assert (status.version, status.state, status.status.error_code) == (7, VersionState.AVAILABLE, 0)


# Refusals: what tf-serving measured on the real server


def spec(request: Any, **fields: Any) -> Any:
    """Return `request` for another model, version, label or signature."""
    version = fields.pop("version", None)
    if version is not None:
        request.model_spec.version.value = version
    for field, value in fields.items():
        setattr(request.model_spec, field, value)
    return request


def inputs(**protos: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "apple"
    for alias, proto in protos.items():
        request.inputs[alias].CopyFrom(proto)
    return request


def filtered(request: Any, *aliases: str) -> Any:
    request.output_filter.extend(aliases)
    return request


def status_of(**fields: Any) -> Any:
    return spec(get_model_status_pb2.GetModelStatusRequest(), **fields)


def metadata_of(*fields: str, name: str = "apple") -> Any:
    return spec(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields), name=name)


FLOATS = tensor(types_pb2.DT_FLOAT, [1, LATENT_DIM])

REFUSALS = {
    "no spec": (predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
    "no name": (spec(generate([1]), name=""), INVALID, "ModelSpec has no name specified."),
    "no name before a label": (
        spec(generate([1]), name="", version_label="stable"),
        INVALID,
        "ModelSpec has no name specified.",
    ),
    "label": (
        spec(generate([1]), version_label="stable"),
        INVALID,
        "Unrecognized servable version label: stable",
    ),
    "unknown model": (spec(generate([1]), name="nope"), NOT_FOUND, "Servable not found for request: Latest(nope)"),
    "version of an unknown model": (
        spec(generate([1]), name="nope", version=7),
        NOT_FOUND,
        "Servable not found for request: Specific(nope, 7)",
    ),
    "unknown version": (generate([1], version=99), NOT_FOUND, "Servable not found for request: Specific(apple, 99)"),
    "version 0": (generate([1], version=0), NOT_FOUND, "Servable not found for request: Specific(apple, 0)"),
    "version -1": (generate([1], version=-1), NOT_FOUND, "Servable not found for request: Specific(apple, -1)"),
    "unknown signature": (
        spec(generate([1]), signature_name="nosig"),
        grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "nosig" not found.',
    ),
    "unknown signature before missing input": (
        spec(inputs(), signature_name="nosig"),
        grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "nosig" not found.',
    ),
    "many rows in forty bytes": (
        from_latents(shape=[2**17, LATENT_DIM]),
        INVALID,
        "Task size 131072 is larger than maximum input batch size 16384",
    ),
    "missing input": (
        inputs(),
        INVALID,
        "input size does not match signature: 0!=1 len({}) != len({latents}). Sent extra: {}. "
        "Missing but required: {latents}.",
    ),
    "extra input": (
        inputs(latents=FLOATS, noise=FLOATS),
        INVALID,
        "input size does not match signature: 2!=1 len({latents,noise}) != len({latents}). Sent extra: {noise}. "
        "Missing but required: {}.",
    ),
    "wrong input name": (
        inputs(noise=FLOATS),
        INVALID,
        "Signature input alias: latents(feed name: serving_default_latents:0) not found in request and no default "
        "value provided. Inputs expected to be in the request {noise}, or default input alias set: ",
    ),
    "wrong dtype": (
        spec(inputs(seeds=tensor(types_pb2.DT_INT32, [1], int_val=[1])), signature_name="generate"),
        INVALID,
        "Expects arg[0] to be int64 but int32 is provided",
    ),
    "wrong dtype, floats wanted": (
        inputs(latents=tensor(types_pb2.DT_DOUBLE, [1, LATENT_DIM])),
        INVALID,
        "Expects arg[0] to be float but double is provided",
    ),
    "wrong shape": (from_latents(shape=[2, 9]), INVALID, "Matrix size-incompatible: In[0]: [2,9], In[1]: [8,12]"),
    "wrong rank": (from_latents(shape=[LATENT_DIM]), INVALID, "In[0] ndims must be >= 2"),
    "content too short": (from_latents(tensor_content=b"abc"), INVALID, "tensor parsing error: latents"),
    "content too long": (from_latents(tensor_content=bytes(100)), INVALID, "tensor parsing error: latents"),
    "no dtype": (from_latents(dtype=types_pb2.DT_INVALID), INVALID, "tensor parsing error: latents"),
    "a dtype that there is not": (from_latents(dtype=200), INVALID, "tensor parsing error: latents"),
    "negative size": (from_latents(shape=[-2, LATENT_DIM]), INVALID, "tensor parsing error: latents"),
    "huge size": (from_latents(shape=[2**40, LATENT_DIM], float_val=[1]), INVALID, "tensor parsing error: latents"),
    "2 GiB from one value": (
        from_latents(shape=[2**26, LATENT_DIM], float_val=[1]),
        INVALID,
        "tensor parsing error: latents",
    ),
    "huge sizes": (from_latents(shape=[2**62, 2**62], float_val=[1]), INVALID, "tensor parsing error: latents"),
    "unknown output": (
        filtered(generate([1]), "nope"),
        INVALID,
        "output tensor alias not found in signature: nope Outputs expected to be in the set {images}.",
    ),
    "unparsable input before unknown output": (
        filtered(from_latents(tensor_content=b"abc"), "nope"),
        INVALID,
        "tensor parsing error: latents",
    ),
    "unknown output before wrong dtype": (
        filtered(from_latents(dtype=types_pb2.DT_DOUBLE), "nope"),
        INVALID,
        "output tensor alias not found in signature: nope Outputs expected to be in the set {images}.",
    ),
    "an output twice": (filtered(generate([1]), "images", "images"), INVALID, "duplicate output tensor alias: images"),
    "status without a spec": (get_model_status_pb2.GetModelStatusRequest(), INVALID, "Missing ModelSpec"),
    "status of an unknown model": (status_of(name="nope"), NOT_FOUND, "Could not find any versions of model nope"),
    "status of an unknown version": (
        status_of(name="apple", version=99),
        NOT_FOUND,
        "Could not find version 99 of model apple",
    ),
    "metadata without a spec": (
        get_model_metadata_pb2.GetModelMetadataRequest(),
        INVALID,
        "Missing ModelSpec",
    ),
    "metadata without a field": (
        metadata_of(),
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    "metadata of an unknown field": (metadata_of("x"), INVALID, "Metadata field x is not supported"),
    "metadata of an unknown model": (
        metadata_of("signature_def", name="nope"),
        NOT_FOUND,
        "Servable not found for request: Latest(nope)",
    ),
}


@pytest.mark.parametrize(("request_", "code", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_request_is_refused_as_tensorflow_serving_does(hosted, request_, code, message):
    assert refusal_of(hosted, request_) == (code, message)


def test_the_status_ignores_an_unknown_label(hosted):
    response = hosted.models.GetModelStatus(status_of(name="apple", version_label="stable"), timeout=LIMIT_S)
    assert [status.version for status in response.model_version_status] == [7]


NAMED = {"model_spec": {"name": "apple"}}
EXAMPLE_REQUESTS = {
    "Classify": (classification_pb2.ClassificationRequest(**NAMED), "No classification inputs found in SignatureDef: "),
    "Regress": (regression_pb2.RegressionRequest(**NAMED), "No regression inputs found in SignatureDef: "),
    "MultiInference": (inference_pb2.MultiInferenceRequest(), "ModelSpec has no name specified."),
}


@pytest.mark.parametrize("method", EXAMPLE_REQUESTS)
def test_requests_with_examples_are_refused_as_tensorflow_serving_does(hosted, method):
    request, text = EXAMPLE_REQUESTS[method]
    with pytest.raises(grpc.RpcError) as refused:
        getattr(hosted.predictions, method)(request, timeout=LIMIT_S)
    assert refused.value.code() is INVALID
    assert refused.value.details().startswith(text)


def test_multi_inference_is_refused_by_the_method_of_its_first_task(hosted):
    task = {"model_spec": {"name": "apple"}, "method_name": "tensorflow/serving/regress"}
    with pytest.raises(grpc.RpcError) as refused:
        hosted.predictions.MultiInference(inference_pb2.MultiInferenceRequest(tasks=[task]), timeout=LIMIT_S)
    assert refused.value.code() is INVALID
    assert refused.value.details().startswith("No regression inputs found in SignatureDef: ")


@pytest.mark.parametrize(
    "method", ["PredictionService/Predict", "PredictionService/GetModelMetadata", "ModelService/GetModelStatus"]
)
def test_bytes_that_are_no_request_are_internal_and_leave_no_traceback(hosted, caplog, method):
    with grpc.insecure_channel(hosted.target) as channel:
        call = channel.unary_unary(f"/tensorflow.serving.{method}")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff", timeout=LIMIT_S)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert refused.value.details() == f"The bytes are no {method.rpartition('/')[2]}Request."
    assert "Traceback" not in caplog.text


def test_nobody_can_give_the_embedded_model_server_another_configuration(hosted):
    for config in ({}, {"model_config_list": {"config": [{"name": "other", "base_path": "/tmp"}]}}):
        with pytest.raises(grpc.RpcError) as refused:
            hosted.models.HandleReloadConfigRequest(
                model_management_pb2.ReloadConfigRequest(config=config), timeout=LIMIT_S
            )
        assert refused.value.code() is INVALID
    assert [status.version for status in statuses(hosted)] == [7]


def test_what_nobody_foresaw_is_internal_and_its_cause_stays_on_the_server(hosted, caplog):
    init = spec(inputs(), signature_name="__saved_model_init_op")  # in the metadata, but nothing that can be run
    code, message = refusal_of(hosted, init)
    assert (code, message) == (
        grpc.StatusCode.INTERNAL,
        "The model server failed on this call; its log says why.",
    )
    assert "Traceback" in caplog.text
    assert "__saved_model_init_op" in caplog.text
