"""The batch server as a process, with a fake model server."""

import hashlib
import string
import threading
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from serving.batch.calls import MAX_REFLECTIONS
from serving.batch.servicer import BATCH_ROWS, BATCHES_AHEAD, PictureService
from serving.pb.ringo.v1 import picture_service_pb2_grpc
from serving.pb.ringo.v1.picture_service_pb2 import DescribeModelRequest, GenerateRequest, PictureOptions
from tests.batch_process import NOT_SERVING, SERVICE, SERVICE_UNKNOWN, SERVING, batch_for, batch_request, refusal
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, LocalServer
from tests.gateway_process import resident_kb, value
from tests.serving.paint.conftest import paint

SEEDS = [5, 0, 2**63 - 1, 42, 5]
LONG = range(100_000)  # half a minute of images: no test waits for its end
SETTINGS = {"batch_streams": 2, "predict_timeout_s": 300}  # beyond LIMIT_S


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, ""),
        ({"format": "FORMAT_WEBP", "size": 32, "model_version": 3}, "&format=webp&size=32&version=3"),
        ({"size": 1024}, "&size=1024"),  # the largest, below the default limit of clients
    ],
)
def test_image_bytes_are_those_of_the_gateway(batch, gateway, options, query):
    expected = [gateway.ask(f"/generate?seed={seed}{query}").body for seed in SEEDS]
    assert [picture.data for picture in batch.paint(SEEDS, **options)] == expected
    single = GenerateRequest(seed=SEEDS[0], options=options)
    assert batch.pictures.Generate(single, timeout=LIMIT_S).picture.data == expected[0]


def test_images_come_in_the_order_of_the_range_with_their_facts(batch):
    seeds = range(7, 7 + 5 * BATCH_ROWS + 3)
    pictures = batch.paint(seeds)
    assert [picture.seed for picture in pictures] == list(seeds)
    assert {(picture.model_version, picture.media_type) for picture in pictures} == {(3, "image/png")}
    assert all(picture.sha256 == hashlib.sha256(picture.data).digest() for picture in pictures)


def test_calls_without_a_deadline_get_images_and_refusals(batch):
    code, _, details = refusal(lambda: list(batch.stream([1], timeout=None, model_version=9)))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_VERSION")
    single = batch.pictures.Generate(GenerateRequest(seed=1))
    assert [response.picture.data for response in batch.stream([1], timeout=None)] == [single.picture.data]


def test_description_has_name_versions_size_and_replica_state(batch):
    model = batch.pictures.DescribeModel(DescribeModelRequest(), timeout=LIMIT_S)
    assert (model.name, list(model.model_versions), model.size, model.replica) == ("apple", [3], 8, "proved")


def test_reflection_describes_the_service(batch):
    database = ProtoReflectionDescriptorDatabase(batch.channel)
    assert set(database.get_services()) > {SERVICE, "grpc.health.v1.Health"}
    service = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE)
    assert set(service.methods_by_name) == {"Generate", "GenerateBatch", "DescribeModel"}


def test_images_come_when_more_clients_watch_than_there_are_threads(batch):
    requests = [health_pb2.HealthCheckRequest(service=service) for service in (SERVICE, "unknown")] * 45
    with grpc.insecure_channel(batch.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:  # 100 calls at most
        watchers = [health_pb2_grpc.HealthStub(channel).Watch(request, timeout=LIMIT_S) for request in requests]
        assert [next(watcher).status for watcher in watchers] == [SERVING, SERVICE_UNKNOWN] * 45
        assert batch.paint([1])


def test_names_of_unknown_services_take_no_memory_when_their_watchers_have_gone(batch):
    before_kb = resident_kb(process := Path(f"/proc/{batch.process.pid}"))
    for letter in string.printable:  # 50 MB
        watcher = batch.health.Watch(health_pb2.HealthCheckRequest(service=letter * 500_000), timeout=LIMIT_S)
        assert next(watcher).status == SERVICE_UNKNOWN
        watcher.cancel()
    assert resident_kb(process) - before_kb < 25_000


def test_reflection_calls_beyond_the_limit_get_resource_exhausted(batch):
    def reflect(requests):
        return ServerReflectionStub(batch.channel).ServerReflectionInfo(requests, timeout=LIMIT_S)

    request, ended = ServerReflectionRequest(list_services=""), threading.Event()
    waiting = [reflect(chain([request], iter(ended.wait, True))) for _ in range(MAX_REFLECTIONS)]
    assert all(next(call) for call in waiting)
    assert refusal(lambda: list(reflect(iter([request]))))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    ended.set()
    assert [list(call) for call in waiting] == [[]] * MAX_REFLECTIONS
    assert len(list(reflect(iter([request])))) == 1


def calls(batch, method: str, outcome: str) -> float:
    return value(batch.metrics_port, "ringo_requests_total", resource=method, outcome=outcome)


def cancel(batch, *streams) -> None:
    """Cancel `streams` and wait until the server has ended them, too."""
    before = calls(batch, "GenerateBatch", "client_gone")
    for stream in streams:
        stream.cancel()
    wait_until(lambda: calls(batch, "GenerateBatch", "client_gone") == before + len(streams), "the end of the streams")


def test_call_ends_with_model_timeout_when_the_model_is_too_slow(model_server, tmp_path):
    with batch_for(model_server.target, tmp_path, predict_timeout_s=0.5) as batch, model_server.holding():
        code, _, details = refusal(lambda: batch.paint([1]))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "MODEL_TIMEOUT")
        wait_until(lambda: calls(batch, "GenerateBatch", "model_timeout") == 1, "the end of the call")


@pytest.mark.parametrize("method", ["Generate", "GenerateBatch"])
def test_model_is_not_called_after_the_deadline_of_the_client(batch, model_server, method):
    request = GenerateRequest(seed=1) if method == "Generate" else batch_request(LONG)
    assert batch.paint([1])  # the version is known and verified
    before, warnings = len(model_server.requests), batch.log.read_text().count("WARNING")
    gone = calls(batch, method, "client_gone")
    with model_server.holding():
        code, _, _ = refusal(lambda: list(getattr(batch.pictures, method)(request, timeout=0.2)))
        wait_until(lambda: calls(batch, method, "client_gone") > gone, "the end of the call")
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert calls(batch, method, "model_timeout") == 0
    assert batch.log.read_text().count("WARNING") == warnings
    assert len(batch.paint([1])) == 1  # nothing hangs
    assert len(model_server.requests) - before <= BATCHES_AHEAD + 1


def test_calls_end_at_their_deadline_when_a_version_is_being_checked(tmp_path):
    with FakeModelServer(version=2) as server, batch_for(server.target, tmp_path, predict_timeout_s=300) as batch:
        calls = (
            lambda: batch.pictures.DescribeModel(DescribeModelRequest(), timeout=0.5),
            lambda: batch.pictures.Generate(GenerateRequest(seed=1), timeout=0.5),
            lambda: list(batch.stream([1], timeout=0.5)),
        )
        with server.holding():
            server.version = 3
            assert {refusal(call)[0] for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            requests = "ringo_requests_in_flight"
            wait_until(lambda: value(batch.metrics_port, requests) == 0, "the end of the calls", limit_s=LIMIT_S / 2)


def test_calls_get_images_when_a_version_replaces_theirs_meanwhile(tmp_path):
    with FakeModelServer(version=2) as server, batch_for(server.target, tmp_path) as batch:
        before = len(server.requests)
        with server.holding():
            single = batch.pictures.Generate.future(GenerateRequest(seed=1), timeout=LIMIT_S)
            stream = batch.stream([1])
            wait_until(lambda: len(server.requests) == before + 2, "calls of the model")
            server.version = 3
        assert [single.result().picture.model_version, next(stream).picture.model_version] == [3, 3]


def test_generation_waits_when_the_reader_is_slow(batch, model_server):
    before = len(model_server.requests)
    stream = batch.stream(LONG, size=128)
    next(stream)
    counts = [0] * 50  # the last ones, 10 ms apart

    def stands_still():
        counts.append(len(model_server.requests) - before)
        return counts[-1] > 0 and counts[-1] == counts[-50]

    wait_until(stands_still, "generation to wait for its reader")
    # Most of them are in gRPC's window: 480 with batches of 32.
    assert sum(sent.inputs["seeds"].tensor_shape.dim[0].size for sent in model_server.requests[before:]) < 1000
    assert [next(stream).picture.seed for _ in range(500)] == list(range(1, 501))
    cancel(batch, stream)


def test_streams_beyond_the_limit_get_resource_exhausted(batch):
    streams = [batch.stream(LONG, size=128) for _ in range(2)]
    for stream in streams:
        next(stream)
    code, message, details = refusal(lambda: batch.paint([1]))
    assert (code, details["RetryInfo"].retry_delay.seconds) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)
    assert message == "This server has 2 streams under way; try again later."
    assert batch.status() == SERVING
    cancel(batch, *streams)
    assert batch.paint([1])


def test_sigterm_ends_streams_with_unavailable_after_the_drain_time(model_server, tmp_path):
    with batch_for(model_server.target, tmp_path, batch_drain_s=0.5) as batch:
        changes = batch.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=LIMIT_S)
        assert next(changes).status == SERVING
        stream = batch.stream(LONG)
        seeds = [next(stream).picture.seed]
        batch.process.terminate()
        assert next(changes).status == NOT_SERVING
        assert batch.status() == batch.status("") == NOT_SERVING  # a new call, while it drains
        assert refusal(lambda: batch.paint([1]))[0] is grpc.StatusCode.UNAVAILABLE
        code, message, details = refusal(lambda: seeds.extend(response.picture.seed for response in stream))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        assert message == "This server is stopping; continue from the next seed on another one."
        assert seeds == list(range(len(seeds)))
        assert batch.process.wait(LIMIT_S) == 0
    assert "Traceback" not in batch.log.read_text()


def test_sigint_ends_the_server_at_once(model_server, tmp_path):
    with batch_for(model_server.target, tmp_path, batch_drain_s=600) as batch:
        stream = batch.stream(LONG)
        next(stream)
        batch.process.send_signal(2)
        assert batch.process.wait(LIMIT_S) == 0


def test_health_is_not_serving_until_the_model_server_is_back(tmp_path):
    with FakeModelServer() as server, batch_for(server.target, tmp_path) as batch:
        stream = batch.stream(LONG)
        next(stream)
        server.stop()
        code, _, details = refusal(lambda: list(stream))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
        assert details["RetryInfo"].retry_delay.seconds == 1
        wait_until(lambda: batch.status() == batch.status("") == NOT_SERVING, "health to be NOT_SERVING")
        here = SimpleNamespace(target=batch.target.replace("localhost", "127.0.0.1"))
        assert "it has no model ready" in paint(here, tmp_path / "out", "--patience-s", 1, code=1)
        with FakeModelServer(port=server.port):
            wait_until(lambda: batch.status() == SERVING, "recovery")
            assert len(batch.paint([1, 2])) == 2


def test_an_unexpected_error_is_internal_without_its_cause(caplog):
    broken = PictureService(None, None, "apple", threads=1, max_streams=1)
    add = picture_service_pb2_grpc.add_PictureServiceServicer_to_server
    with LocalServer(broken, add) as server, grpc.insecure_channel(server.target) as channel:
        pictures = picture_service_pb2_grpc.PictureServiceStub(channel)
        code, message, _ = refusal(lambda: list(pictures.GenerateBatch(batch_request([1]), timeout=LIMIT_S)))
    assert (code, message) == (grpc.StatusCode.INTERNAL, "The server failed; its log says why.")
    assert "AttributeError" in caplog.text


UNKNOWN_OPTION = PictureOptions(size=32)
UNKNOWN_OPTION.MergeFromString(b"\x98\x06\x01")  # field 99, of a later API: 1
# method, message, status, field or beginning of the sentence
REFUSED = [
    ("Generate", GenerateRequest(), "INVALID_ARGUMENT", "seed"),
    ("Generate", GenerateRequest(seed=-1), "INVALID_ARGUMENT", "seed"),
    ("Generate", GenerateRequest(name=""), "INVALID_ARGUMENT", "name"),
    ("Generate", GenerateRequest(name="a\n"), "INVALID_ARGUMENT", "name"),
    ("Generate", GenerateRequest(seed=0, name="a"), "INVALID_ARGUMENT", "name"),
    ("Generate", b"\x1a\x01\xff", "INVALID_ARGUMENT", "message"),
    ("Generate", b"\x7a\x01\x01", "INVALID_ARGUMENT", "GenerateRequest.15"),
    ("GenerateBatch", b"\x12\xff", "INVALID_ARGUMENT", "message"),
    ("GenerateBatch", b"", "INVALID_ARGUMENT", "which"),
    ("GenerateBatch", batch_request([]), "INVALID_ARGUMENT", "list.seeds"),
    ("GenerateBatch", batch_request([0] * 100_001), "INVALID_ARGUMENT", "list.seeds"),
    ("GenerateBatch", batch_request([3, 2, -7]), "INVALID_ARGUMENT", "list.seeds[2]"),
    ("GenerateBatch", batch_request(range(5, 5)), "INVALID_ARGUMENT", "range.end"),
    ("GenerateBatch", batch_request(range(100_001)), "INVALID_ARGUMENT", "range.end"),
    ("GenerateBatch", batch_request(range(-1, 4)), "INVALID_ARGUMENT", "range.start"),
    ("GenerateBatch", batch_request([1], size=1025), "INVALID_ARGUMENT", "options.size"),
    ("GenerateBatch", batch_request([1], format=9), "INVALID_ARGUMENT", "options.format"),
    ("GenerateBatch", batch_request([1], model_version=-1), "INVALID_ARGUMENT", "options.model_version"),
    ("Generate", GenerateRequest(seed=1, options=UNKNOWN_OPTION), "INVALID_ARGUMENT", "PictureOptions.99"),
    ("GenerateBatch", batch_request([1], model_version=9), "NOT_FOUND", "The model server has no version 9"),
    ("Generate", b"\0" * (2**20 + 1), "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (1048577"),
    ("Reload", b"", "UNIMPLEMENTED", "Method not found!"),
]


@pytest.mark.parametrize(("method", "message", "status", "field"), REFUSED)
def test_batch_server_refuses_without_calling_the_model(batch, model_server, method, message, status, field):
    before = len(model_server.requests)
    call = batch.channel.unary_unary(f"/ringo.v1.PictureService/{method}")
    data = message if isinstance(message, bytes) else message.SerializeToString()
    code, sentence, details = refusal(lambda: call(data, timeout=LIMIT_S))
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
