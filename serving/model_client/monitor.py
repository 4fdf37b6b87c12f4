"""The model server's state: versions, and checks of golden images."""

import contextlib
import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from serving.errors import ModelTimeout, ModelUnavailable, RingoError, UnknownVersion
from serving.model_client.client import VERIFIED, ConnectionChanged, Golden, ModelClient
from serving.runtime.single_flight import wait_for
from serving.telemetry.metrics import GOLDEN_DIFFERING, MODEL_SERVER_AWAY
from serving.telemetry.request_log import with_current_context

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 1.0  # as often as TensorFlow Serving polls for new versions
# Allowed batch sizes, together 64: the check also detects images that depend on the size of their batch.
CHECK_BATCHES = (1, 1, 2, 4, 8, 16, 32)
MAX_ATTEMPTS = 5  # of one request, while connections change; servers end them after half a minute by default
T = TypeVar("T")


@dataclass(frozen=True)
class GoldenCheck:
    """The check of one version's golden images, for one connection."""

    version: int
    fingerprint: str  # VERIFIED, or a digest of other golden images: equal fingerprints mean equal bytes
    model: str  # a digest that names the model; empty if it was exported without golden digests
    differing: int | None  # of the golden images; None if the model was exported without their digests
    size: int  # pixels of the longer side of the model's images
    connection: int

    @property
    def verdict(self) -> str:
        """One word for people: proved, unproved or differs."""
        return "unproved" if self.differing is None else "differs" if self.differing else VERIFIED


class ModelMonitor:
    """The model server behind one client; thread-safe.

    `watch` refreshes the state once a second, so no request waits for the versions. While the last refresh found no
    model server, requests that need one fail at once.
    """

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self._lock = threading.Lock()  # guards the fields below
        self._checks: dict[int, GoldenCheck] = {}  # the latest of each version
        self._runs: dict[int, Future[GoldenCheck]] = {}  # in progress, of each version
        self._versions: list[int] = []
        self._refreshed_at_s = -math.inf  # when the last recorded refresh began
        self._away: str | None = None  # one sentence, while no model server answers

    def watch(self, ended: threading.Event) -> None:
        """Refresh once a second until `ended`; check new connections before requests wait."""
        while True:
            try:
                for version in self.refresh():
                    if self.latest_check(version) and not self._current_check(version):
                        self._start_check(version)
            except RingoError:
                pass  # `_record_refresh` keeps it
            except Exception:  # such as RuntimeError for a thread beyond the limit of processes
                log.exception("A refresh failed; the next one is in %g s.", REFRESH_INTERVAL_S)
            if ended.wait(REFRESH_INTERVAL_S):
                return

    def refresh(self) -> list[int]:
        """Return the loaded versions, oldest first, as the model server reports them.

        Raises ModelUnavailable, ModelTimeout (after model_client.STATUS_TIMEOUT_S) or Overloaded.
        """
        began_s = time.monotonic()
        try:
            versions = self._client.available_versions()
        except (ModelUnavailable, ModelTimeout) as error:
            # A model server that has answered another request meanwhile is busy, not away.
            if isinstance(error, ModelUnavailable) or self._client.answered_at_s < began_s:
                self._record_refresh(began_s, error)
            raise
        self._record_refresh(began_s, versions)
        return versions

    def _record_refresh(self, began_s: float, found: list[int] | RingoError) -> None:
        with self._lock:
            if began_s < self._refreshed_at_s:  # a refresh that began later was quicker
                return
            self._refreshed_at_s, before = began_s, self._away
            if isinstance(found, RingoError):
                self._away = str(found)
            else:
                for version in self._checks.keys() - found:
                    if self._checks.pop(version).differing:  # the metrics of several workers can't drop a label
                        GOLDEN_DIFFERING.labels(version).set(0)
                self._versions, self._away = found, None
            after = self._away
            MODEL_SERVER_AWAY.set(after is not None)
        if isinstance(found, RingoError) and after != before:
            causes = (after, *getattr(found, "__notes__", ()))
            log.warning("No request reaches the model server until it is back: %s", " ".join(map(str, causes)))
        elif before and not after:
            log.warning("The model server is back.")

    def versions(self) -> list[int]:
        """Return the loaded versions, oldest first, as the last refresh found them.

        While no model server answers, these are the last known ones: cached images need no model server. Without any,
        raises the errors of `require_model`.
        """
        if not self._versions:
            self.require_model()
        return self._versions or self.refresh()

    def require_model(self) -> None:
        """Raise ModelUnavailable if the last refresh found no loaded version."""
        if away := self._away:
            raise ModelUnavailable(away)

    def knows(self, version: int) -> bool:
        """Return whether a refresh or a check has found `version`."""
        return version in self._checks or version in self._versions

    def latest_check(self, version: int) -> GoldenCheck | None:
        """Return the latest check of `version`, of any connection, if any."""
        return self._checks.get(version)

    def _current_check(self, version: int) -> GoldenCheck | None:
        check = self._checks.get(version)
        return check if check and check.connection == self._client.connection else None

    def golden_check(self, version: int, *, deadline_s: float = math.inf) -> GoldenCheck:
        """Return the check of `version` for the current connection.

        All requests wait for one run, each until its own `deadline_s` (time.monotonic); the run goes on without them.
        Raises the errors of ModelClient, and ClientGone.
        """
        if check := self._current_check(version):
            return check
        run = self._start_check(version)
        wait_for(run, deadline_s)
        return run.result()

    def with_check(
        self, version: int | None, use: Callable[[GoldenCheck], T], *, deadline_s: float = math.inf
    ) -> tuple[GoldenCheck, T]:
        """Return the check of the current connection, and the result of `use`.

        If the connection changes meanwhile, `use` raises ConnectionChanged, and both are done again. Without `version`,
        both are of the newest one, and done again if another version has replaced it since the last refresh.
        """
        if version is None:
            with contextlib.suppress(UnknownVersion):
                return self.with_check(self.versions()[-1], use, deadline_s=deadline_s)
            version = self.refresh()[-1]
        for _ in range(MAX_ATTEMPTS):
            check = self.golden_check(version, deadline_s=deadline_s)
            with contextlib.suppress(ConnectionChanged):
                return check, use(check)
        raise ModelUnavailable(f"The connection to the model server changed {MAX_ATTEMPTS} times; try again later.")

    def _start_check(self, version: int) -> Future[GoldenCheck]:
        """Return the run of the check, or start one in a thread."""
        with self._lock:
            run = self._runs.get(version)
            if run is None:
                run = Future()
                target = with_current_context(self._run_check)  # the first request logs why it failed
                threading.Thread(target=target, args=(version, run), name="golden-check", daemon=True).start()
                self._runs[version] = run  # not before: a thread may not start
            return run

    def _run_check(self, version: int, run: "Future[GoldenCheck]") -> None:
        try:
            check = self._check(version)
            with self._lock:
                self._checks[version] = check
                del self._runs[version]
                if check.differing is not None:
                    GOLDEN_DIFFERING.labels(version).set(check.differing)
            run.set_result(check)
        except BaseException as error:
            with self._lock:  # a failed run keeps the frames of its requests in memory
                self._runs.pop(version, None)
            run.set_exception(error)

    def _check(self, version: int) -> GoldenCheck:
        """Render the golden images of `version` over one connection, and compare them."""
        for _ in range(MAX_ATTEMPTS):
            golden = self._client.golden(version)  # connects, if need be
            connection = self._client.read_connection()
            batches = np.split(golden[0], np.cumsum(CHECK_BATCHES)[:-1])
            images = [image for batch in batches for image in self._client.generate(version, batch.tolist())]
            if connection is None:
                continue
            with contextlib.suppress(ConnectionChanged):
                self._client.require_connection(connection)
                digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
                return compare(version, golden, digests, max(images[0].shape[:2]), connection)
        raise ModelUnavailable(f"The connection to the model server changed {MAX_ATTEMPTS} times; try again later.")


def compare(version: int, golden: Golden, digests: list[bytes], size: int, connection: int) -> GoldenCheck:
    """Return the check of golden images with these SHA-256; log differences."""
    fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()[:8]
    seeds, expected = golden
    if expected is None:
        log.warning("Version %d has no golden digests: this replica is unproved.", version)
        return GoldenCheck(version, fingerprint, "", None, size, connection)
    model = hashlib.sha256(seeds.tobytes() + expected.tobytes()).hexdigest()
    differing = sum(found != row.tobytes() for found, row in zip(digests, expected, strict=True))
    if differing:
        log.error(
            "This replica renders %d of %d golden images of version %d with other bytes than the exporter's machine. "
            "For equal bytes, set TF_ENABLE_ONEDNN_OPTS=1, and use the same kind of processor and TensorFlow release. "
            "ETags of this replica have the prefix %s.",
            *(differing, len(digests), version, fingerprint),
        )
    return GoldenCheck(version, fingerprint if differing else VERIFIED, model, differing, size, connection)
