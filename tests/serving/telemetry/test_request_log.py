"""Request ids, metrics and W3C trace contexts of the gateway and the batch server; spans for a collector."""

import http.client
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from serving.__main__ import FOREIGN
from serving.batch.calls import CODES
from serving.errors import RingoError
from serving.gateway.app import ANSWERS
from serving.telemetry.tracing import export_traces
from tests.batch_process import batch_for
from tests.conftest import VERSION, wait_until
from tests.fake_model_server import LocalServer
from tests.gateway_process import gateway_for, scrape

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SETTINGS = {"log_format": "json", "cache_mb": 0}
VALID_IDS = ("a", "Z" * 64, "0198-aB_c.d")


def requests_of(port: int) -> dict[tuple[str, str, str], float]:
    return {
        (one.labels["resource"], one.labels["outcome"], one.labels["model_version"]): one.value
        for one in scrape(port)
        if one.name == "ringo_requests_total" and one.labels["resource"] not in ("livez", "readyz")
    }


def test_totals_are_right_across_workers_whatever_their_libraries_read(model_server, tmp_path):
    tracing = {f"OTEL_{name}" for name in ("PYTHON_TRACER_PROVIDER", "EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TIMEOUT")}
    foreign = ("env", *(f"{name}=/nope" for name in {*FOREIGN, *tracing, "prometheus_multiproc_dir"}))
    with gateway_for(model_server.target, tmp_path, workers=2, wrapper=foreign) as gateway:
        wait_until(lambda: len(gateway.workers()) == 2, "two workers")
        for unused in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
            gateway.process.send_signal(unused)
        for asleep in (workers := gateway.workers()):
            os.kill(int(asleep.name), signal.SIGSTOP)
            etag = gateway.ask("/generate?seed=1").headers["ETag"]
            for url, headers in [
                *[("/generate?seed=1", {})] * 4,
                *[("/generate?seed=1", {"If_None_Match": etag})] * 2,
                *[("/grid?seeds=10-19", {})] * 3,
                ("/morph?start=1&end=2&frames=5", {}),
                ("/generate?seed=x", {}),
                ("/nothing", {}),
            ]:
                gateway.ask(url, **headers)
            os.kill(int(asleep.name), signal.SIGCONT)
        for worker in workers:  # a terminal that is closed signals all processes
            os.kill(int(worker.name), signal.SIGHUP)
        known = str(VERSION)
        assert requests_of(gateway.metrics_port) == {
            ("generate", "answered", known): 10,
            ("generate", "not_modified", known): 4,
            ("grid", "answered", known): 6,
            ("morph", "answered", known): 2,
            ("generate", "invalid_request", ""): 2,
            ("unknown", "not_found", ""): 2,
        }
        assert gateway.rendered() == 6  # an image, a grid and a morph, for each worker
        assert gateway.metric("ringo_predict_rows_sum", signature="serving_default") == 10
        assert gateway.metric("ringo_pictures_total", source="cache") == 12
        assert gateway.metric("ringo_request_seconds_count", resource="generate") == 16
        assert gateway.metric("ringo_stage_seconds_count", stage="encode") == 6
        assert gateway.metric("ringo_requests_in_flight") == 0
        assert all("zombie" not in (worker / "status").read_text() for worker in workers)
    log = gateway.log.read_text()
    assert re.findall("Handling signal: (.*)", log) == ["term"]
    assert log.count("No spans are sent: an OTEL_ variable is invalid (could not convert ") == 2


def test_a_request_is_in_flight_until_it_is_answered_or_its_worker_dies(server, start_gateway):
    gateway = start_gateway(server.target)
    before = len(server.requests)
    with ThreadPoolExecutor(2) as pool, server.holding():
        waiting = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in (100, 101)]
        wait_until(lambda: len(server.requests) == before + 2, "both calls of the model")
        assert gateway.metric("ringo_requests_in_flight") == 2
        killed = gateway.worker()
        os.kill(int(killed.name), signal.SIGKILL)
        wait_until(lambda: gateway.workers() not in ([killed], []), "another worker")
        assert gateway.metric("ringo_requests_in_flight") == 0
    for broken in waiting:
        assert isinstance(broken.exception(), ConnectionError | http.client.HTTPException)


def test_an_unknown_version_is_no_label(gateway):
    assert gateway.ask("/generate?seed=1&version=98").status == 404
    assert {version for _, _, version in requests_of(gateway.metrics_port)} <= {"", str(VERSION)}


def test_gateway_and_batch_server_answer_every_error():
    assert set(ANSWERS) == set(CODES) == set(RingoError.__subclasses__())


@pytest.mark.parametrize("request_id", [*VALID_IDS, "", "Z" * 65, "a b", "{}"])
def test_request_id_of_the_client_is_returned_when_it_is_valid(gateway, batch, request_id):
    reply = gateway.ask("/generate?seed=1", X_Request_ID=request_id)
    call = batch.stream([1], metadata=[("x-request-id", request_id)])
    assert len(list(call)) == 1
    for returned in (reply.headers["X-Request-ID"], dict(call.initial_metadata())["x-request-id"]):
        assert returned == request_id if request_id in VALID_IDS else int(returned, 16) and len(returned) == 16


@pytest.mark.parametrize("path", ["/generate?seed=1", "/livez", "/static/docs.css", "/generate?seed=x", "/nothing"])
def test_every_response_has_a_request_id_of_its_own_and_a_problem_names_it(gateway, path):
    first, second = gateway.ask(path), gateway.ask(path)
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    if first.status >= 400:
        assert first.problem["request_id"] == first.headers["X-Request-ID"]


def trace_of_last_call(model_server) -> dict[str, str]:
    return {name: text for name, text in model_server.metadata[-1].items() if name.startswith("trace")}


@pytest.mark.parametrize("url", ["/generate?seed=1", "/morph?start=1&end=2"])
def test_gateway_passes_a_trace_to_the_log_and_the_model_server(gateway, model_server, url):
    assert gateway.line_of(gateway.ask(url, Traceparent=PARENT, Tracestate="vendor=a,other=b"))["trace_id"] == TRACE
    assert trace_of_last_call(model_server) == {"traceparent": PARENT, "tracestate": "vendor=a,other=b"}


def test_shared_call_is_part_of_the_trace_that_has_waited_longest(server, start_gateway):
    gateway = start_gateway(server.target, log_format="json", model_calls=1)
    before = len(server.requests)
    with ThreadPoolExecutor(2) as pool, server.holding():
        first = pool.submit(gateway.ask, "/generate?seed=100")
        wait_until(lambda: len(server.requests) > before, "the first call")
        second = pool.submit(gateway.ask, "/generate?seed=101", Traceparent=PARENT)
        wait_until(lambda: gateway.metric("ringo_requests_in_flight") == 2, "the second to wait")
    assert first.result().status == second.result().status == 200
    assert trace_of_last_call(server) == {"traceparent": PARENT}
    line = gateway.line_of(second.result())
    assert line["trace_id"] == TRACE
    assert line["model_seconds"] > 0


def test_batch_server_passes_a_trace_to_the_log_and_the_model_server(batch, model_server):
    assert len(batch.paint(range(3), metadata=[("traceparent", PARENT)])) == 3
    assert trace_of_last_call(model_server) == {"traceparent": PARENT}
    wait_until(lambda: f'"trace_id": "{TRACE}"' in batch.log.read_text(), "a line with the trace")


@pytest.mark.parametrize("parent", [None, "", "x" * 1000, f"ff-{TRACE}-{SPAN}-01", f"{PARENT}, {PARENT}"])
def test_trace_is_a_new_one_when_traceparent_is_not_valid(gateway, model_server, parent):
    reply = gateway.ask("/generate?seed=1", **({} if parent is None else {"Traceparent": parent}))
    new_trace = gateway.line_of(reply)["trace_id"]
    assert new_trace != TRACE
    assert int(new_trace, 16)
    version, trace_id, span_id, flags = trace_of_last_call(model_server)["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", new_trace, "00")
    assert int(span_id, 16)


@pytest.fixture
def exported(monkeypatch):
    """A list to which a collector adds the ResourceSpans of OTLP requests."""
    exported = []

    def export(request, context):
        exported.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    service = SimpleNamespace(Export=export)
    with LocalServer(service, trace_service_pb2_grpc.add_TraceServiceServicer_to_server) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{server.target}")
        yield exported


def test_spans_of_both_servers_are_sent_to_the_collector(exported, model_server, tmp_path):
    with gateway_for(model_server.target, tmp_path) as gateway:
        reply = gateway.ask("/generate?seed=1", Traceparent=PARENT)
        traceparent = trace_of_last_call(model_server)["traceparent"]
    with batch_for(model_server.target, tmp_path) as batch:
        assert len(batch.paint(range(3))) == 3
    every_span = [span for sent in exported for scope in sent.scope_spans for span in scope.spans]
    spans = {span.name: span for span in every_span if span.trace_id.hex() == TRACE}  # sent by SIGTERM
    assert set(spans) == {"GET generate", "model", "encode"}
    server = spans["GET generate"]
    assert server.parent_span_id.hex() == SPAN
    assert {spans[name].parent_span_id for name in ("model", "encode")} == {server.span_id}
    assert traceparent == f"00-{TRACE}-{spans['model'].span_id.hex()}-01"
    attributes = {entry.key: entry.value for entry in server.attributes}
    assert attributes["ringo.request_id"].string_value == reply.headers["X-Request-ID"]
    assert attributes["ringo.model_version"].int_value == VERSION
    names = {span.name for span in every_span}
    assert "POST GenerateBatch" in names
    assert not {name for name in names if "livez" in name or "readyz" in name}
    resources = [entry for sent in exported for entry in sent.resource.attributes]
    services = {entry.value.string_value for entry in resources if entry.key in ("service.namespace", "service.name")}
    assert services == {"ringo", "gateway", "batch"}


def test_export_traces_warns_when_the_sdk_is_missing(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    export_traces("gateway")
    assert "requirements/telemetry.txt is not installed" in caplog.text
