"""Responses and refusals of the embedded model server."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from serving.model_client.messages import get_model_status_pb2, predict_pb2, types_pb2
from tests.conftest import LIMIT_S
from tests.hosted_model_server import (
    INVALID,
    LATENT_DIM,
    NOT_FOUND,
    Hosted,
    from_latents,
    generate,
    hosting,
    refusal_of,
    save_model,
    tensor,
)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory) -> Iterator[Hosted]:
    """Version 7 of apple, which no test changes."""
    base_path = tmp_path_factory.mktemp("hosted")
    save_model(base_path / "7", 10)
    with hosting(base_path) as hosted:
        yield hosted


def test_response_names_version_and_signature_when_the_request_does_not(hosted):
    spec = hosted.predict(from_latents()).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("apple", 7, "serving_default")


def test_concurrent_calls_agree(hosted):
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(hosted.predict, [generate([1, 2, 3])] * 200))
    assert all(response == responses[0] for response in responses)


def spec(request: Any, *, version: int | None = None, **fields: Any) -> Any:
    """Return `request` for another model, version, label or signature."""
    if version is not None:
        request.model_spec.version.value = version
    for field, value in fields.items():
        setattr(request.model_spec, field, value)
    return request


def inputs(*, output_filter: Sequence[str] = (), **protos: Any) -> Any:
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = "apple"
    for alias, proto in protos.items():
        request.inputs[alias].CopyFrom(proto)
    return request


FLOATS = tensor(types_pb2.DT_FLOAT, [1, LATENT_DIM])
INTS = tensor(types_pb2.DT_INT32, [1], int_val=[1])
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

# Statuses as TensorFlow Serving, and most messages: request, status, beginning of the sentence
REFUSED = [
    (predict_pb2.PredictRequest(), INVALID, "ModelSpec has no name specified."),
    (spec(generate([1]), version_label="stable"), INVALID, "Unrecognized servable version label: stable"),
    (spec(generate([1]), name="nope"), NOT_FOUND, "Servable not found for request: Latest(nope)"),
    (generate([1], version=0), NOT_FOUND, "Servable not found for request: Specific(apple, 0)"),
    (spec(inputs(), signature_name="nosig"), PRECONDITION, 'Serving signature key "nosig" not found.'),
    (from_latents(shape=[2**17, LATENT_DIM]), INVALID, "Task size 131072 is larger than maximum input batch size"),
    (inputs(), INVALID, "The signature takes {latents}; the request has {}."),
    (inputs(latents=FLOATS, noise=FLOATS), INVALID, "The signature takes {latents}; the request has {latents,noise}."),
    (spec(inputs(seeds=INTS), signature_name="generate"), INVALID, "Type mismatch: actual int32 vs. expect int64"),
    (from_latents(shape=[2, 9]), INVALID, "Matrix size-incompatible: In[0]: [2,9], In[1]: [8,12]"),
    (from_latents(shape=[LATENT_DIM]), INVALID, "In[0] ndims must be >= 2"),
    *(
        (from_latents(**proto), INVALID, "tensor parsing error: latents")
        for proto in (
            {"tensor_content": b"abc"},
            {"dtype": types_pb2.DT_INVALID},
            {"dtype": types_pb2.DT_RESOURCE},
            {"shape": [-1, LATENT_DIM], "tensor_content": bytes(4 * LATENT_DIM)},
            {"shape": [2**62, 2**62], "float_val": [1]},
        )
    ),
    (inputs(latents=FLOATS, output_filter=["nope"]), INVALID, "output tensor alias not found in signature: nope Out"),
    (
        spec(get_model_status_pb2.GetModelStatusRequest(), name="nope"),
        NOT_FOUND,
        "Could not find any versions of model nope",
    ),
    (
        spec(get_model_status_pb2.GetModelStatusRequest(), name="apple", version=99),
        NOT_FOUND,
        "Could not find version 99 of model apple",
    ),
]


@pytest.mark.parametrize(("request_", "code", "sentence"), REFUSED)
def test_model_server_refuses_invalid_requests(hosted, request_, code, sentence):
    found, details = refusal_of(hosted, request_)
    assert (found, details[: len(sentence)]) == (code, sentence)


def test_embedded_model_server_cannot_be_reconfigured(hosted):
    with grpc.insecure_channel(hosted.target) as channel:
        call = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=LIMIT_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_request_are_internal_without_a_traceback(hosted, caplog):
    with grpc.insecure_channel(hosted.target) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff", timeout=LIMIT_S)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert refused.value.details() == "The bytes are no PredictRequest."
    assert "Traceback" not in caplog.text


def test_an_unexpected_error_is_internal_and_its_cause_is_in_the_log_only(hosted, caplog):
    init = spec(inputs(), signature_name="__saved_model_init_op")  # in the metadata, but nothing that can be run
    code, message = refusal_of(hosted, init)
    assert (code, message) == (grpc.StatusCode.INTERNAL, "The model server failed on this call; its log says why.")
    assert "__saved_model_init_op" in caplog.text
