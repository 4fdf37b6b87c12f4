"""Calls that the batch server refuses without calling the model."""

import grpc
import pytest

from serving.pb.ringo.v1 import picture_service_pb2
from tests.batch_process import batch_request, refusal
from tests.conftest import LIMIT_S

UNKNOWN_OPTION = picture_service_pb2.PictureOptions(size=32)
UNKNOWN_OPTION.MergeFromString(b"\x98\x06\x01")  # field 99, of a later API: 1


def single(**fields) -> bytes:
    return picture_service_pb2.GenerateRequest(**fields).SerializeToString()


def many(seeds, **options) -> bytes:
    return batch_request(seeds, **options).SerializeToString()


# method, message, status, field or beginning of the sentence
REFUSED = [
    ("Generate", single(), "INVALID_ARGUMENT", "seed"),
    ("Generate", single(seed=-1), "INVALID_ARGUMENT", "seed"),
    ("Generate", single(name=""), "INVALID_ARGUMENT", "name"),
    ("Generate", single(name="a\n"), "INVALID_ARGUMENT", "name"),
    ("Generate", single(seed=0, name="a"), "INVALID_ARGUMENT", "name"),
    ("Generate", b"\x1a\x01\xff", "INVALID_ARGUMENT", "message"),
    ("Generate", b"\x7a\x01\x01", "INVALID_ARGUMENT", "GenerateRequest.15"),
    ("GenerateBatch", b"\x12\xff", "INVALID_ARGUMENT", "message"),
    ("GenerateBatch", b"", "INVALID_ARGUMENT", "which"),
    ("GenerateBatch", many([]), "INVALID_ARGUMENT", "list.seeds"),
    ("GenerateBatch", many([0] * 100_001), "INVALID_ARGUMENT", "list.seeds"),
    ("GenerateBatch", many([3, 2, -7]), "INVALID_ARGUMENT", "list.seeds[2]"),
    ("GenerateBatch", many(range(5, 5)), "INVALID_ARGUMENT", "range.end"),
    ("GenerateBatch", many(range(100_001)), "INVALID_ARGUMENT", "range.end"),
    ("GenerateBatch", many(range(-1, 4)), "INVALID_ARGUMENT", "range.start"),
    ("GenerateBatch", many([1], size=1025), "INVALID_ARGUMENT", "options.size"),
    ("GenerateBatch", many([1], format=9), "INVALID_ARGUMENT", "options.format"),
    ("GenerateBatch", many([1], model_version=-1), "INVALID_ARGUMENT", "options.model_version"),
    ("Generate", single(seed=1, options=UNKNOWN_OPTION), "INVALID_ARGUMENT", "PictureOptions.99"),
    ("GenerateBatch", many([1], model_version=9), "NOT_FOUND", "The model server has no version 9"),
    ("Generate", b"\0" * (2**20 + 1), "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (1048577"),
    ("Reload", b"", "UNIMPLEMENTED", "Method not found!"),
]


@pytest.mark.parametrize(("method", "message", "status", "field"), REFUSED)
def test_batch_server_refuses_without_calling_the_model(batch, model_server, method, message, status, field):
    before = len(model_server.requests)
    call = batch.channel.unary_unary(f"/ringo.v1.PictureService/{method}")
    code, sentence, details = refusal(lambda: call(message, timeout=LIMIT_S))
    assert code.name == status
    if status == "INVALID_ARGUMENT":
        assert [violation.field for violation in details["BadRequest"].field_violations] == [field]
        assert (details["ErrorInfo"].domain, details["ErrorInfo"].reason) == ("ringo", "INVALID_REQUEST")
    assert sentence.startswith(field)
    assert len(model_server.requests) <= before + (status == "NOT_FOUND")
    assert "Traceback" not in batch.log.read_text()


def test_batch_server_refuses_a_compressed_message_above_the_limit(batch):
    call = batch.channel.unary_unary("/ringo.v1.PictureService/Generate")
    code, *_ = refusal(lambda: call(b"\0" * 2**24, timeout=LIMIT_S, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
