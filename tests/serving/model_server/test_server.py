"""The embedded model server: hot swaps, and the process."""

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.model_client.messages import prediction_service_pb2_grpc
from serving.model_server.server import main
from serving.settings import MODEL_NAME
from tests.conftest import LIMIT_S, wait_until
from tests.gateway_process import free_port, run_serving
from tests.hosted_model_server import (
    POLL_INTERVAL_S,
    Hosted,
    from_latents,
    hosting,
    images,
    model_server_process,
    publish,
    save_model,
    withdraw,
    write_warm_up,
)

POLLS_S = 10 * POLL_INTERVAL_S


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory) -> dict[int, Path]:
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


def test_no_call_fails_until_all_versions_are_removed(swapped, saved_models):
    deadline = time.monotonic() + LIMIT_S

    def shades_until_20(_: int) -> set[int]:
        shades: set[int] = set()
        while 20 not in shades and time.monotonic() < deadline:
            shades.add(int(images(swapped.predict(from_latents()))[0, 0, 0, 0]))
        return shades

    with ThreadPoolExecutor(4) as pool:
        clients = pool.map(shades_until_20, range(4))
        publish(saved_models[20], swapped.base_path, "2")
        swapped.wait_for(2, "AVAILABLE")
        for shades in clients:  # raises the error of a failed call
            assert 20 in shades <= {10, 20}
    swapped.wait_for(1, "END")
    assert list(swapped.states().items()) == [(2, "AVAILABLE"), (1, "END")]
    for removed, state in (("2", "AVAILABLE"), ("1", "END")):
        withdraw(swapped.base_path, removed)
        swapped.wait_for(1, state)
    not_found = (grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(apple)")
    assert swapped.refusal_of(from_latents()) == not_found
    (swapped.base_path / ".gone-1").rename(swapped.base_path / "1")
    swapped.wait_for(1, "AVAILABLE")
    assert swapped.predict(from_latents()).model_spec.version.value == 1


@pytest.mark.parametrize(
    "break_version",
    [
        lambda folder: (folder / "variables" / "variables.index").unlink(),
        lambda folder: write_warm_up(folder, from_latents(shape=[2, 9])),
    ],
    ids=["a file is missing", "its warm-up fails"],
)
def test_old_version_serves_when_the_new_one_is_broken(swapped, saved_models, caplog, break_version):
    aside = swapped.base_path / ".aside"
    shutil.copytree(saved_models[20], aside)
    break_version(aside)
    aside.rename(swapped.base_path / "2")
    swapped.wait_for(2, "END")
    broken, served = (version.status for version in swapped.statuses())
    assert (broken.error_code, served.error_code) == (2, 0)
    assert broken.error_message
    assert swapped.states()[1] == "AVAILABLE"
    withdraw(swapped.base_path, "1")  # only the broken one is left
    time.sleep(POLLS_S)
    assert swapped.predict(from_latents()).model_spec.version.value == 1
    assert caplog.text.count("can't be loaded") == 1
    shutil.copytree(saved_models[20], swapped.base_path / "2", dirs_exist_ok=True)  # nested files change
    swapped.wait_for(2, "AVAILABLE")


def test_versions_stay_when_other_folders_come_or_the_base_path_is_gone(swapped, saved_models):
    for name in ("abc", "1a", "-1", "1.0", ".2", "²", "9" * 19, "1" * 20):
        publish(saved_models[20], swapped.base_path, name)
    time.sleep(POLLS_S)
    assert swapped.states() == {1: "AVAILABLE"}
    swapped.base_path.rename(swapped.base_path.with_name("elsewhere"))
    time.sleep(POLLS_S)
    assert swapped.predict(from_latents()).model_spec.version.value == 1


def test_process_has_flags_of_tensorflow_serving_and_waits_for_a_version(saved_models, tmp_path):
    port, log, models, socket_path = free_port(), tmp_path / "log", tmp_path / "models", tmp_path / "server.sock"
    flags = [
        *(f"--port={port}", "--model_name=apple", f"--model_base_path={models}", f"--grpc_socket_path={socket_path}"),
        *("--rest_api_port=8501", "--monitoring_config_file=/none", "--enable_model_warmup=true"),
        *("--enable_grpc_healthcheck_service=true", "--grpc_max_threads=64", "--max_num_load_retries=0"),
        *("--tensorflow_intra_op_parallelism=1", "--enable_serialization_as_tensor_content=true"),
        "--grpc_channel_arguments=grpc.max_connection_age_ms=30000,grpc.max_connection_age_grace_ms=15000",
        *("--file_system_poll_wait_seconds=0.05", "--log-format=json"),
    ]
    with model_server_process(log, f"waiting for a version of apple in {models}", *flags) as process:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        models.mkdir()
        publish(saved_models[10], models, "1")
        wait_until(lambda: f"serving apple on 127.0.0.1:{port}" in log.read_text(), "a line that it serves")
        for target in (f"127.0.0.1:{port}", f"unix:{socket_path}"):
            with grpc.insecure_channel(target) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                assert stub.Predict(from_latents(), timeout=LIMIT_S).outputs["images"].tensor_content
                response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
                assert response.status == health_pb2.HealthCheckResponse.SERVING
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    assert not re.findall("Traceback|numerical", log.read_text())  # TensorFlow: "different numerical results"
    ours = [line for line in log.read_text().splitlines() if line.startswith("{")]  # TensorFlow has its own format
    assert {json.loads(line)["level"] for line in ours} == {"INFO", "WARNING"}


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--host", "192.0.2.1", "a name or address of this machine: Cannot assign requested address."),
        ("--grpc_socket_path", "/no/socket", "a path of at most 107 bytes, in a folder where files may be created."),
    ],
)
def test_process_ends_with_one_sentence_when_it_cannot_listen(saved_models, tmp_path, flag, value, allowed):
    publish(saved_models[10], tmp_path, "1")
    done = run_serving("model-server", flag, value, "--port", "0", "--model_base_path", tmp_path)
    assert (done.returncode, f"{flag} is '{value}'; allowed is {allowed}" in done.stderr.splitlines()) == (2, True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--port", "65536", "a whole number from 0 (a free one) to 65535"),
        ("--file_system_poll_wait_seconds", "3601", "a number of seconds above 0, up to 3600"),
        ("--grpc_channel_arguments", f"grpc.max_connection_age_ms={2**31}", "NAME=VALUE,NAME=VALUE"),
        ("--grpc_max_threads", "0", "a whole number from 1 to 1024"),
        ("--model_name", " ", MODEL_NAME.allowed),
        ("--host", "", "the name or address to listen on"),
        ("--model_base_path", __file__, "a folder, which need not exist yet"),
    ],
)
def test_command_line_is_refused_with_flag_value_and_what_is_allowed(flag, value, allowed, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([f"{flag}={value}"])
    assert f"argument {flag}: {value!r} is not valid; allowed is {allowed}." in capsys.readouterr().err
