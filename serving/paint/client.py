"""The client of the batch server: checked images, with retries."""

import hashlib
import ipaddress
import math
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving.pb.ringo.v1 import picture_service_pb2 as pb
from serving.pb.ringo.v1 import picture_service_pb2_grpc
from serving.rendering.query import Picture
from serving.runtime.connection_failures import connection_failure
from serving.runtime.security import check_pem_files
from serving.settings import addresses_of

SERVICE_CONFIG = """{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "ringo.v1.PictureService"}
}"""
CHANNEL_OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.max_receive_message_length", 16 * 2**20),  # an image of 1024 x 1024 is 3 MB before compression
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A machine that loses power closes no connection. Without pings the kernel notices after 15 minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the variables that gRPC reads
DESCRIBE_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 2.0
REPORT_AFTER_S, REPORT_EVERY_S = 1.0, 10.0  # of waiting for an image
REPORT_STEP_S = 0.2
MAX_REASON_CHARACTERS = 256
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0  # between two tries; each pause is twice the last one

# A retry, perhaps on another replica, may succeed.
TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,  # by `end_silent_calls`, or by a server that stops
    }
)


class PaintError(Exception):
    """`paint` can't continue; the text is one sentence for the user."""


class VersionGoneError(PaintError):
    """The requested model version is no longer loaded."""


class Stopped(Exception):
    """`stop` was called."""


@dataclass(frozen=True)
class Secrets:
    """Credentials of a client: paths of PEM files, and a bearer token."""

    ca: Path | None = None  # with it, the connection is TLS
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None


class PictureClient:
    """Client of all replicas behind `target`; thread-safe.

    Transient errors are retried with growing pauses, until no image has come for `patience_s`. A thread passes the
    reason to `report` meanwhile.
    """

    def __init__(
        self, target: str, secrets: Secrets, *, patience_s: float, report: Callable[[str], object] = lambda text: None
    ) -> None:
        """Open the channel. Raises SettingsError if a PEM file is not usable."""
        self._target = target
        self._patience_s = patience_s
        self._secrets = secrets
        self._metadata = [("authorization", f"Bearer {secrets.token}")] if secrets.token else []
        hosts = [host.strip("[]") for host, *_ in addresses_of(target)]
        proxies = [name for name in PROXIES if os.environ.get(name) and not all(map(is_direct, hosts))]
        self._proxies = f" ({', '.join(proxies)} is set)" if proxies else ""
        options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(bool(proxies))))
        if secrets.ca is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            check_pem_files({"--certificate": secrets.certificate, "--key": secrets.key}, {"--ca": secrets.ca})
            parts = [path and path.read_bytes() for path in (secrets.ca, secrets.key, secrets.certificate)]
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(*parts), options=options)
        self._stub = picture_service_pb2_grpc.PictureServiceStub(self._channel)
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # guards the fields below
        self._calls: dict[Any, float] = {}  # start of its wait for an image; infinite while it does not wait
        self._last_picture_s = math.inf  # or the end of its use, or the start of the first call
        self._trouble: str | None = f"{target} has not answered yet."
        threading.Thread(target=self._report, args=(report,), name="report", daemon=True).start()

    def stop(self) -> None:
        """End all calls, also later ones, with Stopped."""
        self._stopped.set()
        with self._lock:
            for call in self._calls:
                call.cancel()

    def end_silent_calls(self) -> None:
        """Cancel calls without an image for `patience_s`; `paint` retries them."""
        latest_s = time.monotonic() - self._patience_s
        with self._lock:
            for call, since_s in self._calls.items():
                if since_s < latest_s:
                    call.cancel()

    def close(self) -> None:
        """End all calls, and close the channel."""
        self.stop()
        self._channel.close()

    def _report(self, report: Callable[[str], object]) -> None:
        """Report why no image comes: after REPORT_AFTER_S, then every REPORT_EVERY_S.

        Without a known cause, the first report comes after REPORT_EVERY_S of a call's wait, not of a slow disk's.
        """
        next_s = REPORT_AFTER_S
        while not self._stopped.wait(REPORT_STEP_S):
            with self._lock:
                waited_s, trouble = time.monotonic() - self._last_picture_s, self._trouble
                is_waiting = trouble or any(since_s < math.inf for since_s in self._calls.values())
            if waited_s < REPORT_AFTER_S:
                next_s = REPORT_AFTER_S
            elif is_waiting and waited_s >= (next_s if trouble else max(next_s, REPORT_EVERY_S)):
                next_s = waited_s + REPORT_EVERY_S
                report(f"No image for {waited_s:.0f} s: {trouble or f'{self._target} sends nothing.'}")

    def newest_version(self) -> int:
        """Return the newest model version that is loaded. Raises PaintError or Stopped."""
        self._start_clock()
        timeout_s, pause_s = min(DESCRIBE_TIMEOUT_S, self._patience_s), FIRST_PAUSE_S
        while True:
            try:
                described = self._stub.DescribeModel(
                    pb.DescribeModelRequest(), timeout=timeout_s, metadata=self._metadata
                )
            except grpc.RpcError as error:
                pause_s = self._back_off(error, pause_s)
            else:
                self._trouble = None
                if not described.model_versions:
                    raise PaintError(f"{self._target} named no version of its model; check --target.")
                return int(described.model_versions[-1])

    def paint(self, seeds: Sequence[int], query: Picture) -> Iterator[pb.Picture]:
        """Yield one image per seed, in order, with the options of `query`.

        Raises:
            VersionGoneError: that version is no longer loaded; images yielded before are valid.
            PaintError: any other error that a retry can't repair.
            Stopped: `stop` was called.
        """
        file_format = f"FORMAT_{str(query.format).upper()}"  # the message takes names
        options = pb.PictureOptions(size=query.size, format=file_format, model_version=query.version)
        self._start_clock()
        done, pause_s = 0, FIRST_PAUSE_S
        while done < len(seeds):
            request = pb.GenerateBatchRequest(list=pb.SeedList(seeds=seeds[done:]), options=options)
            try:
                for picture in self._pictures(request):
                    if done == len(seeds):
                        raise PaintError(f"{self._target} sent more images than seeds; check --target.")
                    self._check(picture, seeds[done], query)
                    yield picture
                    done, pause_s = done + 1, FIRST_PAUSE_S
            except grpc.RpcError as error:
                pause_s = self._back_off(error, pause_s)
                continue
            if done < len(seeds):
                raise PaintError(f"{self._target} did not send seed {seeds[done]}; rerun the command.")

    def _start_clock(self) -> None:
        with self._lock:
            self._last_picture_s = min(self._last_picture_s, time.monotonic())

    def _pictures(self, request: pb.GenerateBatchRequest) -> Iterator[pb.Picture]:
        call = self._stub.GenerateBatch(request, metadata=self._metadata)
        with self._lock:
            self._calls[call] = time.monotonic()
        try:
            if self._stopped.is_set():
                raise Stopped
            for response in call:
                with self._lock:
                    self._last_picture_s, self._calls[call] = time.monotonic(), math.inf
                    self._trouble = None
                yield response.picture
                with self._lock:
                    self._last_picture_s = self._calls[call] = time.monotonic()
        finally:
            call.cancel()  # without effect on an ended call
            with self._lock:
                del self._calls[call]

    def _check(self, picture: pb.Picture, seed: int, query: Picture) -> None:
        if (picture.seed, picture.model_version) != (seed, query.version):
            raise PaintError(
                f"{self._target} sent seed {picture.seed} of version {picture.model_version}, not seed {seed} of "
                f"version {query.version}; rerun the command."
            )
        if hashlib.sha256(picture.data).digest() != picture.sha256:
            raise PaintError(f"{self._target} sent seed {seed} with a wrong SHA-256; rerun the command.")

    def _back_off(self, error: grpc.RpcError, pause_s: float) -> float:
        """Wait up to `pause_s`; return the next pause, or raise."""
        if self._stopped.is_set():
            raise Stopped from error
        details = error.details() or "no reason given"
        sentence = f"{self._target} answered {error.code().name}: {details[:MAX_REASON_CHARACTERS]}"
        if failure := self._connection_failure(error):
            reason, may_help = failure
            sentence = f"{self._target} does not answer{self._proxies}: {reason}."
            if not may_help:
                raise PaintError(sentence) from error
        if error.code() is grpc.StatusCode.CANCELLED or details == "Deadline Exceeded":  # of this client
            sentence = f"{self._target} sent nothing."
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise VersionGoneError(sentence) from error
        if error.code() not in TRANSIENT:
            raise PaintError(sentence) from error
        with self._lock:
            waited_s, self._trouble = time.monotonic() - self._last_picture_s, sentence
        if waited_s > self._patience_s:
            raise PaintError(f"No image has come for {waited_s:.0f} s; {sentence}") from error
        if self._stopped.wait(pause_s * random.uniform(0.5, 1.0)):  # jitter: streams retry at different times
            raise Stopped from error
        return min(2 * pause_s, LONGEST_PAUSE_S)

    def _connection_failure(self, error: grpc.RpcError) -> tuple[str, bool] | None:
        """Return connection_failure, after a handshake if gRPC's text is vague."""
        failure = connection_failure(error)
        if failure and self._secrets.ca is None and speaks_tls(self._target, self._secrets):
            return "it speaks TLS: give --ca", False
        if failure and "TLS handshake" in failure[0]:
            # Up to TLS 1.2, the server checks the client's certificate within the handshake, from 1.3 on after it.
            accepts_1_2 = speaks_tls(self._target, self._secrets, ssl.TLSVersion.TLSv1_2)
            if not accepts_1_2 and speaks_tls(self._target, self._secrets):
                return "it demands a valid certificate of a CA that it trusts: check --certificate and --key", False
        return failure


def is_direct(host: str) -> bool:
    """Return whether `host` is this machine, or no_proxy names it."""
    no_proxy = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))  # noqa: SIM112 (gRPC reads these)
    if host.endswith(tuple(no_proxy.replace(",", " ").split())):
        return True
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):  # UnicodeError: not a name at all, such as 64 letters
        return False
    addresses = [getattr(ip := ipaddress.ip_address(address[0]), "ipv4_mapped", None) or ip for *_, address in found]
    return all(address.is_loopback or address.is_unspecified for address in addresses)


def speaks_tls(target: str, secrets: Secrets, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bool:
    """Return whether the first address of `target` speaks TLS with this client."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    context.maximum_version = newest
    host, _, port = addresses_of(target)[0]
    try:
        if secrets.certificate is not None:
            context.load_cert_chain(secrets.certificate, secrets.key, password="")
        address = host.strip("[]"), int(port)
        with socket.create_connection(address, PROBE_TIMEOUT_S) as plain, context.wrap_socket(plain):
            return True
    except (OSError, UnicodeError) as error:
        return "PROTOCOL_VERSION" in str(error)  # a newer one only
