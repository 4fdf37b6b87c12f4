"""The batch server as a process of its own, with gRPC stubs."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from serving.pb.ringo.v1 import picture_service_pb2, picture_service_pb2_grpc
from tests.conftest import LIMIT_S, command, started, wait_until
from tests.gateway_process import environment, free_port

SERVICE = "ringo.v1.PictureService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@dataclass(frozen=True)
class Batch:
    """The process, which a test may end, and stubs."""

    target: str
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path
    channel: grpc.Channel
    pictures: Any
    health: Any

    def stream(self, seeds: range | list[int], *, timeout: float = LIMIT_S, metadata: Any = (), **options: Any) -> Any:
        """Begin a GenerateBatch of `seeds`; iterate over it, or cancel() it."""
        return self.pictures.GenerateBatch(batch_request(seeds, **options), timeout=timeout, metadata=metadata)

    def paint(self, seeds: range | list[int], **options: Any) -> list[Any]:
        return [response.picture for response in self.stream(seeds, **options)]

    def status(self, service: str = SERVICE) -> int:
        return self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=LIMIT_S).status


def batch_request(seeds: range | list[int], **options: Any) -> Any:
    is_range = isinstance(seeds, range)
    which = {"range": {"start": seeds.start, "end": seeds.stop}} if is_range else {"list": {"seeds": seeds}}
    return picture_service_pb2.GenerateBatchRequest(options=options, **which)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """Return code, message and google.rpc details of the error that `call()` raises."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    details = {}
    for packed in status.details if status else ():
        name = packed.type_url.rpartition(".")[2]
        details[name] = getattr(error_details_pb2, name)()
        packed.Unpack(details[name])
    return caught.value.code(), caught.value.details(), details


@contextmanager
def batch_for(
    target: str, folder: Path, *, credentials: grpc.ChannelCredentials | None = None, **settings: Any
) -> Iterator[Batch]:
    """Run a ready batch server in a `with` block; its ports are free ones unless `settings` names them."""
    settings = {"batch_port": free_port(), "batch_metrics_port": free_port(), "model_server": target} | settings
    log = folder / "batch.log"
    address, env = f"localhost:{settings['batch_port']}", environment(**settings)
    with started(command("serving", "batch"), log, lambda: "serving " in log.read_text(), env=env) as process:
        channel = grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
        with channel:
            pictures, health = picture_service_pb2_grpc.PictureServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            batch = Batch(address, settings["batch_metrics_port"], process, log, channel, pictures, health)
            wait_until(lambda: batch.status() == SERVING, "a model that is ready")
            yield batch
