"""What this process knows of the model server: which versions it has, and whether it paints what the exporter did."""

import contextlib
import hashlib
import logging
import math
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np

from serving.errors import ModelTimeout, ModelUnavailable, RingoError
from serving.model_client.client import VERIFIED, ModelClient
from serving.runtime.single_flight import seconds_until
from serving.telemetry.metrics import GOLDEN_DIFFERING, MODEL_SERVER_AWAY
from serving.telemetry.request_log import with_current_context

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 1.0  # as often as TensorFlow Serving looks for new versions
# In the allowed batch sizes, together 64: a replica where a picture depends on the size of its batch shows it.
CHECK_BATCHES = (1, 1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class GoldenCheck:
    """What a replica made of the golden seeds."""

    fingerprint: str  # VERIFIED, or a digest of other golden images: equal fingerprints mean equal bytes
    differing: int | None  # of the golden pictures; None if the model was exported without their digests
    size: int  # pixels of the longer side of the model's pictures
    made_s: float = field(default_factory=time.monotonic, compare=False)

    @property
    def verdict(self) -> str:
        """One word for people: proved, unproved or differs."""
        return "unproved" if self.differing is None else "differs" if self.differing else VERIFIED


class ModelMonitor:
    """The model server behind one client. Threads may share it.

    What is known of it comes from looks: one a second where `watch` runs. Between them nobody waits to learn which
    versions there are, and while the last one found no model server, nobody waits for a picture of it either.
    """

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self._lock = threading.Lock()  # guards what follows
        self._checks: dict[int, GoldenCheck] = {}  # of the machine that has answered since the last outage
        self._versions: list[int] = []
        self._refreshed_at_s = -math.inf  # when the look began whose findings these are
        self._lost = False
        self._away: str | None = None  # one sentence, while there is no model server to ask
        self._running: dict[int, Future[GoldenCheck]] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look once a second until `ended`."""
        while True:
            with contextlib.suppress(RingoError):  # which is what `_record_refresh` keeps
                self.refresh()
            if ended.wait(REFRESH_INTERVAL_S):
                return

    def refresh(self) -> list[int]:
        """Ask the model server which versions it has loaded, and return them, oldest first.

        Raises ModelUnavailable, ModelTimeout (after model_client.STATUS_TIMEOUT_S) or Overloaded.
        """
        began_s = time.monotonic()
        try:
            versions = self._client.available_versions()
        except (ModelUnavailable, ModelTimeout) as error:
            # One that has answered somebody else meanwhile is busy, not away.
            if isinstance(error, ModelUnavailable) or self._client.answered_at_s < began_s:
                self._record_refresh(began_s, error)
            raise
        self._record_refresh(began_s, versions)
        return versions

    def _record_refresh(self, began_s: float, found: list[int] | RingoError) -> None:
        with self._lock:
            if began_s < self._refreshed_at_s:  # another look, which began later, has been quicker
                return
            self._refreshed_at_s, before = began_s, self._away
            if isinstance(found, RingoError):
                self._lost = self._lost or isinstance(found, ModelUnavailable)
                self._away = str(found)
            else:
                self._forget_missing(found, began_s)
                if self._lost:  # what came back may be another machine
                    self._checks = {}
                self._versions, self._lost, self._away = found, False, None
            after = self._away
            MODEL_SERVER_AWAY.set(after is not None)
        if after and not before:
            log.warning("Nothing is asked of the model server until it is back: %s", after)
        elif before and not after:
            log.warning("The model server is back.")

    def _forget_missing(self, found: list[int], began_s: float) -> None:
        """Forget the checks of versions that are gone: the model server had them before `began_s`, and then not."""
        for version, check in list(self._checks.items()):
            if version not in found and check.made_s < began_s:
                del self._checks[version]
                if check.differing:  # the metrics of several workers can't drop a label
                    GOLDEN_DIFFERING.labels(version).set(0)

    def versions(self) -> list[int]:
        """Return the loaded versions, oldest first, as the last look found them.

        While nobody answers they are the last that were known: a picture that is kept, here or by the caller, needs no
        model server. Where none ever were, raises what `require_model` does.
        """
        if self._refreshed_at_s == -math.inf:  # the first to ask
            return self.refresh()
        with self._lock:
            versions = self._versions
        if not versions:
            self.require_model()
        return versions or self.refresh()

    def require_model(self) -> None:
        """Raise ModelUnavailable, at once, if the last look found no model server, or none with a version ready."""
        away = self._away
        if away:
            raise ModelUnavailable(away)

    def knows(self, version: int) -> bool:
        """Return whether the model server has had `version` ready as far as is known here, and ask nobody."""
        return version in self._checks or version in self._versions

    def known_check(self, version: int) -> GoldenCheck | None:
        """Return what `proof` would without asking the model; None if it has to be asked."""
        return self._checks.get(version)

    def golden_check(self, version: int, *, deadline_s: float = math.inf) -> GoldenCheck:
        """Return what this replica makes of the golden seeds: painted once per version, then known.

        All who ask meanwhile wait for one painting of them, until `deadline_s` of time.monotonic at most: it goes on
        without them. Raises what ModelClient does.
        """
        known = self.known_check(version)
        if known is not None:
            return known
        with self._lock:
            future = self._running.get(version)
            if future is None:
                future = self._running[version] = Future()
                run = with_current_context(self._run)  # the first request logs the failure
                threading.Thread(target=run, args=(version, future), name="golden-check", daemon=True).start()
        if not wait([future], seconds_until(deadline_s)).done:
            raise ModelTimeout("The caller's time was up before the golden pictures were painted.")
        return future.result()

    def _run(self, version: int, future: Future[GoldenCheck]) -> None:
        try:
            future.set_result(self._run_check(version))
        except BaseException as error:
            future.set_exception(error)
        finally:
            with self._lock:
                del self._running[version]

    def _run_check(self, version: int) -> GoldenCheck:
        checks = self._checks  # after an outage meanwhile, this one would be of the machine before
        golden = self._client.golden(version)
        seeds = np.arange(sum(CHECK_BATCHES)) if golden is None else golden.seeds
        batches = np.split(seeds, np.cumsum(CHECK_BATCHES)[:-1])
        images = [image for batch in batches for image in self._client.generate(version, batch.tolist())]
        digests, size = [hashlib.sha256(image.tobytes()).digest() for image in images], max(images[0].shape[:2])
        fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()[:8]
        if golden is None:
            check = GoldenCheck(fingerprint, None, size)
            log.warning("Version %d carries no golden digests: what this replica paints is unproved.", version)
        else:
            expected = [row.tobytes() for row in golden.digests]
            differing = sum(found != wanted for found, wanted in zip(digests, expected, strict=True))
            check = GoldenCheck(fingerprint if differing else VERIFIED, differing, size)
        if check.differing:
            log.error(
                "This replica paints %d of %d golden pictures of version %d otherwise than the machine of the export: "
                "another kind of processor? Its pictures get ETags of their own class, %s.",
                *(check.differing, len(digests), version, check.fingerprint),
            )
        with self._lock:
            if checks is self._checks:
                checks[version] = check
                if check.differing is not None:
                    GOLDEN_DIFFERING.labels(version).set(check.differing)
        return check
