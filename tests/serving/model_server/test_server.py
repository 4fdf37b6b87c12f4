"""The embedded model server: what it hosts when, and the process itself."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.model_client.messages import prediction_service_pb2_grpc
from serving.model_server.server import main
from serving.model_server.versions import VersionState
from tests.conftest import LIMIT_S, ROOT, wait_until
from tests.hosted_model_server import (
    NOT_FOUND,
    Hosted,
    from_latents,
    hosting,
    images,
    publish,
    refusal_of,
    save_model,
    statuses,
    withdraw,
)


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory) -> dict[int, Path]:
    """Two SavedModels by the shade that tells them apart."""
    folders = {shade: tmp_path_factory.mktemp("saved") / str(shade) for shade in (10, 20)}
    for shade, folder in folders.items():
        save_model(folder, shade)
    return folders


@pytest.fixture
def swapped(saved_models, tmp_path) -> Iterator[Hosted]:
    """Version 1 of apple with shade 10, for tests that swap."""
    publish(saved_models[10], tmp_path, "1")
    with hosting(tmp_path) as hosted:
        yield hosted


def test_no_call_fails_in_a_hot_swap(swapped, saved_models):
    deadline = time.monotonic() + LIMIT_S

    def shades_until_20(_: int) -> set[int]:
        seen: set[int] = set()
        while 20 not in seen and time.monotonic() < deadline:
            seen.add(int(images(swapped.predict(from_latents()))[0, 0, 0, 0]))
        return seen

    with ThreadPoolExecutor(4) as pool:
        callers = pool.map(shades_until_20, range(4))
        publish(saved_models[20], swapped.base_path, "2")
        swapped.wait_for(2, VersionState.AVAILABLE)
        for seen in callers:  # a call that failed is raised here
            assert 20 in seen <= {10, 20}
    swapped.wait_for(1, VersionState.END)
    assert [(s.version, s.state) for s in statuses(swapped)] == [(2, VersionState.AVAILABLE), (1, VersionState.END)]


def test_a_broken_version_ends_with_an_error_and_the_old_one_serves(swapped, saved_models):
    shutil.copytree(saved_models[20], swapped.base_path / ".aside")
    (swapped.base_path / ".aside" / "variables" / "variables.index").unlink()
    (swapped.base_path / ".aside").rename(swapped.base_path / "2")
    swapped.wait_for(2, VersionState.END)
    broken, served = statuses(swapped)
    assert broken.status.error_code != 0
    assert broken.status.error_message
    assert (served.version, served.state) == (1, VersionState.AVAILABLE)
    assert swapped.predict(from_latents()).model_spec.version.value == 1


def test_a_version_that_fails_its_own_warm_up_takes_no_traffic(swapped, saved_models):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    shutil.copytree(saved_models[20], swapped.base_path / ".aside")
    with tf.io.TFRecordWriter(str(swapped.base_path / ".aside/assets.extra/tf_serving_warmup_requests")) as writer:
        entry = prediction_log_pb2.PredictionLog()
        entry.predict_log.request.CopyFrom(from_latents(shape=[2, 9]))
        writer.write(entry.SerializeToString())
    (swapped.base_path / ".aside").rename(swapped.base_path / "2")
    swapped.wait_for(2, VersionState.END)
    assert swapped.predict(from_latents()).model_spec.version.value == 1


def test_a_warm_up_file_that_cannot_be_read_is_left_out(swapped, saved_models):
    shutil.copytree(saved_models[20], swapped.base_path / ".aside")
    (swapped.base_path / ".aside/assets.extra/tf_serving_warmup_requests").write_bytes(b"not a TFRecord at all")
    (swapped.base_path / ".aside").rename(swapped.base_path / "2")
    swapped.wait_for(2, VersionState.AVAILABLE)


def test_with_all_versions_removed_nothing_is_found_until_one_returns(swapped, saved_models):
    withdraw(swapped.base_path, "1")
    swapped.wait_for(1, VersionState.END)
    assert refusal_of(swapped, from_latents()) == (NOT_FOUND, "Servable not found for request: Latest(apple)")
    (swapped.base_path / ".gone-1").rename(swapped.base_path / "1")
    swapped.wait_for(1, VersionState.AVAILABLE)
    assert swapped.predict(from_latents()).model_spec.version.value == 1


# The process


@contextmanager
def process(*arguments: str, log: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "serving", "model-server", *arguments]
    with log.open("w") as stderr, subprocess.Popen(command, cwd=ROOT, stderr=stderr) as started:
        try:
            yield started
        finally:
            started.kill()


def test_without_a_version_no_port_is_open_and_sigterm_ends_with_0(saved_models, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log, base_path = tmp_path / "log", tmp_path / "models"
    options = [
        "--port",
        str(port),
        "--model_base_path",
        str(base_path),
        "--file_system_poll_wait_seconds",
        "0.05",
        "--log-format",
        "json",
    ]
    with process(*options, log=log) as started:
        wait_until(lambda: f"waiting for a version of apple in {base_path}" in log.read_text(), "a line that it waits")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        base_path.mkdir()
        publish(saved_models[10], base_path, "1")
        wait_until(lambda: f"serving apple on 127.0.0.1:{port}" in log.read_text(), "a line that it serves")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(from_latents(), timeout=LIMIT_S).model_spec.version.value == 1
        started.send_signal(signal.SIGTERM)
        assert started.wait(LIMIT_S) == 0
    assert "Traceback" not in log.read_text()
    ours = [line for line in log.read_text().splitlines() if line.startswith("{")]  # TensorFlow has its own format
    assert {json.loads(line)["level"] for line in ours} == {"INFO", "WARNING"}


def test_flags_of_tensorflow_serving_are_taken(saved_models, tmp_path):
    publish(saved_models[10], tmp_path, "1")
    log, socket_path = tmp_path / "log", tmp_path / "model-server.sock"
    flags = [
        *("--port=0", "--model_name=apple", f"--model_base_path={tmp_path}", f"--grpc_socket_path={socket_path}"),
        *("--rest_api_port=8501", "--monitoring_config_file=/none", "--enable_model_warmup=true"),
        *("--enable_grpc_healthcheck_service=true", "--grpc_max_threads=64", "--max_num_load_retries=0"),
        *("--tensorflow_intra_op_parallelism=1", "--enable_serialization_as_tensor_content=true"),
        "--grpc_channel_arguments=grpc.max_connection_age_ms=30000,grpc.max_connection_age_grace_ms=15000",
    ]
    with process(*flags, log=log):
        wait_until(lambda: "serving apple on" in log.read_text(), "a line that it serves")
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(from_latents(), timeout=LIMIT_S).outputs["images"].tensor_content
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
            assert response.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_taken_port_is_one_sentence_and_status_1(saved_models, tmp_path, capfd, signals_restored):
    publish(saved_models[10], tmp_path, "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--model_base_path", str(tmp_path)]) == 1
    sentence = f"--port is '{port}'; allowed is a port that is free on 127.0.0.1: Address already in use"
    assert capfd.readouterr().err.splitlines()[-1].startswith(sentence)


def test_a_host_that_is_not_this_machine_is_one_sentence_and_status_1(saved_models, tmp_path, capfd, signals_restored):
    publish(saved_models[10], tmp_path, "1")
    assert main(["--host", "192.0.2.1", "--port", "0", "--model_base_path", str(tmp_path)]) == 1
    sentence = "--host is '192.0.2.1'; allowed is a name or address of this machine: Cannot assign requested address."
    assert capfd.readouterr().err.splitlines()[-1] == sentence


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--port", "65536", "a whole number from 0 (a free one) to 65535"),
        ("--port", "-1", "a whole number from 0 (a free one) to 65535"),
        ("--port", "http", "a whole number from 0 (a free one) to 65535"),
        ("--grpc_max_threads", "0", "a whole number from 1 to 1024"),
        ("--file_system_poll_wait_seconds", "0", "a number of seconds above 0, up to 3600"),
        ("--file_system_poll_wait_seconds", "-1", "a number of seconds above 0, up to 3600"),
        ("--file_system_poll_wait_seconds", "nan", "a number of seconds above 0, up to 3600"),
        ("--file_system_poll_wait_seconds", "soon", "a number of seconds above 0, up to 3600"),
        ("--model_name", " ", "the name of a model"),
        ("--host", "", "the name or address to listen on"),
        ("--model_base_path", __file__, "a folder, which may be yet to come"),
    ],
)
def test_a_bad_value_is_a_sentence_with_flag_value_and_what_is_allowed(flag, value, allowed, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([f"{flag}={value}"])
    assert f"argument {flag}: {value!r} is not valid; allowed is {allowed}." in capsys.readouterr().err
