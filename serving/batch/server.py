"""The batch server's process: ports, credentials, health, reflection and shutdown."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from serving.batch.calls import SERVICE, RefusingInterceptor
from serving.batch.servicer import MAX_SINGLES, PictureService
from serving.errors import RingoError
from serving.model_client.client import ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.pb.ringo.v1 import picture_service_pb2_grpc
from serving.rendering.renderer import Renderer
from serving.runtime.ports import address_of, listen, with_port
from serving.runtime.security import check_tls
from serving.settings import Settings, SettingsError
from serving.telemetry.logs import configure as configure_logging
from serving.telemetry.metrics import build_metrics_app
from serving.telemetry.tracing import export_traces

MAX_REQUEST_BYTES = 2**20
MAX_RESPONSE_BYTES = 4 * 2**20  # the default limit of clients; the largest image, 1024 x 1024 of noise, is 3.2 MB
PAINT_THREADS = 8  # for all streams: enough to keep a model server busy while other batches are encoded
SPARE_THREADS = 8  # beside those of streams and single images: for health, reflection, refusals
MAX_WATCHERS = 256  # clients that watch the health, such as each `paint`; further ones wait
HEALTH_INTERVAL_S = 1.0  # as often as TensorFlow Serving polls for new versions
STOP_GRACE_S = 5.0  # for batches under way when the drain time ends
SERVICES = ("", SERVICE)  # with a health; "" is the whole server
FLUSH_S = 0.5  # after the grace time, to send the last responses

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a taken port is no error, and two servers share its calls
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_concurrent_streams", 100),  # per connection: limits the calls that wait for a thread
    # Connections end after five minutes, so that clients find new replicas; their streams may go on for half an hour,
    # four times the longest one at 200 images a second.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 1_800_000),
    # A client that loses power closes no connection. Clients may ping, too, every ten seconds, also between calls.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

log = logging.getLogger(__name__)


class HealthServicer(health.HealthServicer):
    """Answers grpc.health.v1.Health; watchers hold no threads of other calls."""

    def __init__(self) -> None:
        # Without threads for watchers, the library can deadlock (github.com/grpc/grpc/pull/43403).
        threads = ThreadPoolExecutor(MAX_WATCHERS, thread_name_prefix="watch")
        super().__init__(experimental_non_blocking=False, experimental_thread_pool=threads)

    def Watch(  # noqa: N802 (the service's name)
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Yield the status of a service now and after each change."""
        if request.service not in SERVICES:  # the library would keep the name, of up to 1 MiB, for good
            request = health_pb2.HealthCheckRequest(service="unknown")
        watcher: Iterator[health_pb2.HealthCheckResponse] = super().Watch(request, context)
        return watcher


def serve(settings: Settings) -> None:
    """Serve gRPC until SIGTERM, which lets streams end, or SIGINT.

    Raises KeyboardInterrupt after SIGINT, and SettingsError if a port is not free or a TLS file is not usable.
    """
    configure_logging(settings.log_format)
    check_tls(settings)
    port, metrics_port = settings.batch_port, settings.batch_metrics_port
    with (  # both at once, because they must differ; errors of gRPC and prometheus_client name no setting
        listen(settings.host, port, variable="RINGO_BATCH_PORT") as taken,
        listen(settings.host, metrics_port, variable="RINGO_BATCH_METRICS_PORT"),
    ):
        host = address_of(taken)
    if "%" in host:  # prometheus_client would bind it without its interface
        raise SettingsError("RINGO_HOST", settings.host, "an address that is not link-local")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    export_traces("batch")
    client = ModelClient(settings.model_server, settings.model_name, predict_timeout_s=settings.predict_timeout_s)
    monitor = ModelMonitor(client)
    # No cache: a batch is rarely requested twice.
    renderer = Renderer(client, settings.model_name, cache_bytes=0, model_calls=settings.model_calls)
    service = PictureService(
        monitor, renderer, settings.model_name, threads=PAINT_THREADS, max_streams=settings.batch_streams
    )
    health_servicer = HealthServicer()
    set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
    server = build_server(settings, with_port(host, port), service, health_servicer)
    metrics_server, _ = start_http_server(metrics_port, host)
    metrics_server.set_app(build_metrics_app())
    ended = threading.Event()
    threading.Thread(target=monitor.watch, args=(ended,), name="monitor", daemon=True).start()
    threading.Thread(target=watch_health, args=(monitor, health_servicer, ended), name="health", daemon=True).start()
    server.start()
    log.info("serving %s on %s:%d", settings.model_name, settings.host, settings.batch_port)
    flush_s = None
    try:
        server.wait_for_termination()  # wakes ten times a second; a wait without a limit missed 2 of about 30 signals
    except SystemExit:
        log.info("stopping; streams have %g s", settings.batch_drain_s)
        health_servicer.enter_graceful_shutdown()
        service.drain(settings.batch_drain_s, grace_s=STOP_GRACE_S)
        flush_s = FLUSH_S
    finally:
        ended.set()
        server.stop(flush_s).wait()
        client.close()
        service.close()


def build_server(
    settings: Settings, address: str, service: PictureService, health_servicer: HealthServicer
) -> grpc.Server:
    """Return the server with its services at `address`, not yet started."""
    server = grpc.server(
        ThreadPoolExecutor(settings.batch_streams + MAX_SINGLES + SPARE_THREADS, thread_name_prefix="call"),
        interceptors=[RefusingInterceptor(settings.token)],
        options=SERVER_OPTIONS,
    )
    picture_service_pb2_grpc.add_PictureServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        server.add_insecure_port(address)
        return server

    def read() -> grpc.ServerCertificateConfiguration:  # for each handshake: the files may be renewed
        pair = key.read_bytes(), certificate.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], client_ca and client_ca.read_bytes())

    credentials = grpc.dynamic_ssl_server_credentials(read(), read, require_client_authentication=client_ca is not None)
    server.add_secure_port(address, credentials)
    return server


def watch_health(monitor: ModelMonitor, health_servicer: HealthServicer, ended: threading.Event) -> None:
    """Report SERVING while a version of the model is ready, until `ended`."""
    last = health_pb2.HealthCheckResponse.NOT_SERVING
    while True:
        status = health_pb2.HealthCheckResponse.SERVING
        try:
            version = monitor.versions()[-1]
            monitor.require_model()
            if monitor.latest_check(version) is None:
                monitor.golden_check(version)
        except RingoError as error:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
            if last != status:
                log.warning("not serving: %s", error)
        except Exception:  # such as RuntimeError for a thread beyond the limit of processes
            log.exception("A check failed; the next one is in %g s.", HEALTH_INTERVAL_S)
            status = last
        if last != status:
            set_health(health_servicer, status)
        last = status
        if ended.wait(HEALTH_INTERVAL_S):
            return


def set_health(health_servicer: HealthServicer, status: int) -> None:
    """Set the health of the server and of its service."""
    for service in SERVICES:
        health_servicer.set(service, status)
