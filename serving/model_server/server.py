"""The embedded model server, for machines without TensorFlow Serving."""

import argparse
import gc
import logging
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from serving.model_server.prediction_service import PredictionService
from serving.model_server.versions import VersionWatcher
from serving.runtime.ports import address_of, listen, with_port
from serving.settings import FOLDER, HOST, LOG_FORMAT, MODEL_NAME, SettingsError, flag, matching, seconds, whole_numbers
from serving.telemetry.logs import configure as configure_logging

MAX_CONCURRENT_CALLS = 256  # at 30 ms an image the last of them waits 8 s
# Threads of one operation. With 4 and 8, oneDNN splits sums by the size of the batch, so last bits of an image depend
# on its batch. With 2 they don't, but on two cores two concurrent calls of one image take 1.6 times as long, and larger
# batches as long. More concurrent calls, or more replicas, use more cores.
INTRA_OP_THREADS = 1
STOP_GRACE_S = 10.0  # as long as a gateway waits for a response by default
POLL_INTERVAL_S = 0.2
MAX_POLL_INTERVAL_S = 3600.0  # a larger number is probably milliseconds

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a taken port is no error, and two servers share its calls
    ("grpc.max_receive_message_length", -1),  # no limit, as TensorFlow Serving; clients set their own
    ("grpc.max_send_message_length", -1),
)

# Flags of TensorFlow Serving for features that this server lacks, or for its only behaviour.
WITHOUT_EFFECT = (
    "rest_api_port",
    "monitoring_config_file",
    "enable_model_warmup",
    "max_num_load_retries",
    "tensorflow_intra_op_parallelism",
)

SERVING = b"\x08\x01"  # a grpc.health.v1.HealthCheckResponse; requirements/train.txt lacks its package
HEALTH = grpc.method_handlers_generic_handler(
    "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(lambda request, context: SERVING)}
)

log = logging.getLogger(__name__)


def start_server(service: PredictionService, arguments: argparse.Namespace) -> tuple[grpc.Server, int]:
    """Return a running server for `service`, and its port.

    `arguments` are those of `parse`. Raises SettingsError if the port is taken, or the Unix socket cannot be made.
    """
    # gRPC would log a line of its own, without the reason.
    with listen(arguments.host, arguments.port, variable="--port", host_variable="--host") as taken:
        host = address_of(taken)
    server = grpc.server(
        ThreadPoolExecutor(arguments.grpc_max_threads, thread_name_prefix="call"),
        handlers=(*service.handlers(), *([HEALTH] if arguments.enable_grpc_healthcheck_service else [])),
        options=(*SERVER_OPTIONS, *arguments.grpc_channel_arguments),
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,  # excess calls get RESOURCE_EXHAUSTED
    )
    if path := arguments.grpc_socket_path:
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            allowed = "a path of at most 107 bytes, in a folder where files may be created"
            raise SettingsError("--grpc_socket_path", path, allowed) from error
    bound = server.add_insecure_port(with_port(host, arguments.port))
    server.start()
    return server, bound


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m serving model-server`, which serves the versions of one model.

    No port is open before a first version is loaded. Calls in flight at the end have STOP_GRACE_S. Raises SettingsError
    if nothing can listen on host and port, KeyboardInterrupt after SIGTERM or SIGINT, and SystemExit(2) after one
    sentence on stderr if `argv` is not valid.
    """
    arguments = parse(argv)
    configure_logging(arguments.log_format)
    # TensorFlow logs remarks as errors, and raises real ones.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Without oneDNN, the default for processors without AVX-512 VNNI, images depend on the size of their batch and take
    # twice as long. With it, the golden images of apple, version 3, are equal on AVX2 and AVX-512.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(INTRA_OP_THREADS))
    load = _import_load()
    gc.freeze()  # TensorFlow has 380,000 objects: a collection would delay a call by 0.2 s

    model_name, base_path = arguments.model_name, arguments.model_base_path
    watcher = VersionWatcher(base_path, load, poll_interval_s=arguments.file_system_poll_wait_seconds)
    watcher.start()
    if not watcher.servables:
        log.warning("waiting for a version of %s in %s; no port is open until then", model_name, base_path)
    try:
        while not watcher.has_served.wait(POLL_INTERVAL_S):  # without a limit, it may miss a signal
            pass
        typed_fields = not arguments.enable_serialization_as_tensor_content
        server, bound = start_server(PredictionService(watcher, model_name, typed_fields=typed_fields), arguments)
        log.info("serving %s on %s:%d", model_name, arguments.host, bound)
        try:
            server.wait_for_termination()
        finally:
            log.info("stopping; calls in flight have %g s", STOP_GRACE_S)
            server.stop(STOP_GRACE_S).wait(STOP_GRACE_S)
    finally:
        watcher.close(timeout_s=STOP_GRACE_S)
    return 0


def _import_load() -> Callable[[Path], Any]:
    """Import TensorFlow (3 s) without its remarks; return `servable.load`."""
    # As training/backend.py says, an import may drop a KeyboardInterrupt.
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    stderr = os.dup(2)  # no setting of TensorFlow stops the remarks
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)
    try:
        from serving.model_server.servable import load
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
    return load


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line: TensorFlow Serving's flags, and two more."""
    threads = 4 * (os.cpu_count() or 1)  # as TensorFlow Serving
    parser = argparse.ArgumentParser(prog="python -m serving model-server", description=__doc__)
    add = parser.add_argument
    add("--model_name", type=flag(*MODEL_NAME), default="apple", help="the model's name")
    add(
        "--model_base_path",
        type=flag(*FOLDER),
        default="models/apple",
        help="folder of the numbered versions (default: models/apple)",
    )
    add("--host", type=flag(*HOST), default="127.0.0.1")
    add("--port", type=flag(*whole_numbers(0, 65535, "a free one")), default="8500")
    add("--grpc_max_threads", type=flag(*whole_numbers(1, 1024)), default=str(threads))
    add("--grpc_socket_path", default="", metavar="PATH", help="listen on this Unix socket, too")
    add("--grpc_channel_arguments", type=flag(channel_arguments, "NAME=VALUE,NAME=VALUE"), default="", metavar="LIST")
    add("--file_system_poll_wait_seconds", type=flag(*seconds(MAX_POLL_INTERVAL_S)), default="1")
    add("--log-format", type=flag(*LOG_FORMAT), default="text")
    # As TensorFlow Serving reads it.
    boolean = flag(matching("(?ai)true|1|false|0", lambda text: text.lower() in ("true", "1")), "true or false")
    for name in ("enable_serialization_as_tensor_content", "enable_grpc_healthcheck_service"):
        add(f"--{name}", type=boolean, nargs="?", const=True, default="false")
    for name in WITHOUT_EFFECT:
        add(f"--{name}", help="accepted, without effect")
    return parser.parse_args(argv)


def channel_arguments(value: str) -> tuple[tuple[str, int | str], ...]:
    """Return gRPC's options in `value`, such as grpc.max_connection_age_ms=30000; or raise ValueError."""
    pairs = [part.split("=", 1) for part in value.split(",") if part]
    options = tuple((name, int(text) if text.lstrip("-").isdecimal() else text) for name, text in pairs)
    if any(isinstance(option, int) and abs(option) >= 2**31 for _, option in options):
        raise ValueError
    return options
