"""The embedded model server: changes of versions, and the process."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.model_client.messages import prediction_service_pb2_grpc
from serving.model_server.prediction_service import PredictionService
from serving.model_server.server import main, start_server
from serving.model_server.versions import VersionState
from serving.settings import SettingsError
from tests.conftest import LIMIT_S, ROOT, command, ended_afterwards, wait_until
from tests.gateway_process import free_port
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


def test_a_version_gets_no_traffic_when_its_warm_up_fails(swapped, saved_models):
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


def test_nothing_is_found_when_all_versions_are_removed(swapped, saved_models):
    withdraw(swapped.base_path, "1")
    swapped.wait_for(1, VersionState.END)
    assert refusal_of(swapped, from_latents()) == (NOT_FOUND, "Servable not found for request: Latest(apple)")
    (swapped.base_path / ".gone-1").rename(swapped.base_path / "1")
    swapped.wait_for(1, VersionState.AVAILABLE)
    assert swapped.predict(from_latents()).model_spec.version.value == 1


FLAGS = [  # those of k8s/base/model-server/deployment.yaml
    *("--rest_api_port=8501", "--monitoring_config_file=/none", "--enable_model_warmup=true"),
    *("--enable_grpc_healthcheck_service=true", "--grpc_max_threads=64", "--max_num_load_retries=0"),
    *("--tensorflow_intra_op_parallelism=1", "--enable_serialization_as_tensor_content=true"),
    "--grpc_channel_arguments=grpc.max_connection_age_ms=30000,grpc.max_connection_age_grace_ms=15000",
]


def test_process_serves_when_a_version_comes_and_ends_on_sigterm(saved_models, tmp_path):
    port, log, base_path = free_port(), tmp_path / "log", tmp_path / "models"
    own = [f"--port={port}", f"--model_base_path={base_path}", "--file_system_poll_wait_seconds=0.05"]
    with log.open("w") as stderr:
        words = command("serving", "model-server", *own, "--log-format=json", *FLAGS)
        process = subprocess.Popen(words, cwd=ROOT, stderr=stderr)
    with ended_afterwards(process):
        wait_until(lambda: f"waiting for a version of apple in {base_path}" in log.read_text(), "a line that it waits")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        base_path.mkdir()
        publish(saved_models[10], base_path, "1")
        wait_until(lambda: f"serving apple on 127.0.0.1:{port}" in log.read_text(), "a line that it serves")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(from_latents(), timeout=LIMIT_S).outputs["images"].tensor_content
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    assert "Traceback" not in log.read_text()
    ours = [line for line in log.read_text().splitlines() if line.startswith("{")]  # TensorFlow has its own format
    assert {json.loads(line)["level"] for line in ours} == {"INFO", "WARNING"}


def test_start_names_the_host_when_it_is_of_another_machine():
    with pytest.raises(SettingsError, match="--host is"):
        start_server(PredictionService(None, "apple"), host="192.0.2.1")


PORT, SECONDS = "a whole number from 0 (a free one) to 65535", "a number of seconds above 0, up to 3600"


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--port", "65536", PORT),
        ("--file_system_poll_wait_seconds", "0", SECONDS),
        ("--grpc_max_threads", "0", "a whole number from 1 to 1024"),
        ("--model_name", " ", "the name of a model"),
        ("--host", "", "the name or address to listen on"),
        ("--model_base_path", __file__, "a folder, which may be yet to come"),
    ],
)
def test_command_names_flag_and_value_when_it_is_invalid(flag, value, allowed, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([f"{flag}={value}"])
    assert f"argument {flag}: {value!r} is not valid; allowed is {allowed}." in capsys.readouterr().err
