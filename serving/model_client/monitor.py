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
from serving.model_client.client import PROVED, ModelClient
from serving.runtime.single_flight import seconds_until
from serving.telemetry.metrics import GOLDEN_DIFFERING, MODEL_SERVER_AWAY
from serving.telemetry.request_log import carried

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0  # as often as TensorFlow Serving looks for new versions
# In the allowed batch sizes, together 64: a replica where a picture depends on the size of its batch shows it.
PROOF_BATCHES = (1, 1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Proof:
    """What a replica made of the golden seeds."""

    mark: str  # PROVED, or a name for what it painted instead: replicas of one mark paint the same bytes
    differing: int | None  # of the golden pictures; None if the model was exported without their digests
    size: int  # pixels of the longer side of the model's pictures
    made_s: float = field(default_factory=time.monotonic, compare=False)

    @property
    def verdict(self) -> str:
        """One word for people: proved, unproved or differs."""
        return "unproved" if self.differing is None else "differs" if self.differing else PROVED


class Replica:
    """The model server behind one client. Threads may share it.

    What is known of it comes from looks: one a second where `watch` runs. Between them nobody waits to learn which
    versions there are, and while the last one found no model server, nobody waits for a picture of it either.
    """

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self._lock = threading.Lock()  # guards what follows
        self._proofs: dict[int, Proof] = {}  # of the machine that has answered since the last outage
        self._versions: list[int] = []
        self._looked_at_s = -math.inf  # when the look began whose findings these are
        self._lost = False
        self._away: str | None = None  # one sentence, while there is no model server to ask
        self._making: dict[int, Future[Proof]] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look once a second until `ended`."""
        while True:
            with contextlib.suppress(RingoError):  # which is what `_found` keeps
                self.look()
            if ended.wait(LOOK_INTERVAL_S):
                return

    def look(self) -> list[int]:
        """Ask the model server which versions it has loaded, and return them, oldest first.

        Raises ModelUnavailable, ModelTimeout (after model_client.STATUS_TIMEOUT_S) or Overloaded.
        """
        began_s = time.monotonic()
        try:
            versions = self._client.available_versions()
        except (ModelUnavailable, ModelTimeout) as error:
            # One that has answered somebody else meanwhile is busy, not away.
            if isinstance(error, ModelUnavailable) or self._client.answered_at_s < began_s:
                self._found(began_s, error)
            raise
        self._found(began_s, versions)
        return versions

    def _found(self, began_s: float, found: list[int] | RingoError) -> None:
        with self._lock:
            if began_s < self._looked_at_s:  # another look, which began later, has been quicker
                return
            self._looked_at_s, before = began_s, self._away
            if isinstance(found, RingoError):
                self._lost = self._lost or isinstance(found, ModelUnavailable)
                self._away = str(found)
            else:
                self._forget_all_but(found, began_s)
                if self._lost:  # what came back may be another machine
                    self._proofs = {}
                self._versions, self._lost, self._away = found, False, None
            after = self._away
            MODEL_SERVER_AWAY.set(after is not None)
        if after and not before:
            log.warning("Nothing is asked of the model server until it is back: %s", after)
        elif before and not after:
            log.warning("The model server is back.")

    def _forget_all_but(self, found: list[int], began_s: float) -> None:
        """Forget the proofs of versions that are gone: the model server had them before `began_s`, and then not."""
        for version, proof in list(self._proofs.items()):
            if version not in found and proof.made_s < began_s:
                del self._proofs[version]
                if proof.differing:  # the metrics of several workers can't drop a label
                    GOLDEN_DIFFERING.labels(version).set(0)

    def versions(self) -> list[int]:
        """Return the loaded versions, oldest first, as the last look found them.

        While nobody answers they are the last that were known: a picture that is kept, here or by the caller, needs no
        model server. Where none ever were, raises what `require_model` does.
        """
        if self._looked_at_s == -math.inf:  # the first to ask
            return self.look()
        with self._lock:
            versions = self._versions
        if not versions:
            self.require_model()
        return versions or self.look()

    def require_model(self) -> None:
        """Raise ModelUnavailable, at once, if the last look found no model server, or none with a version ready."""
        away = self._away
        if away:
            raise ModelUnavailable(away)

    def knows(self, version: int) -> bool:
        """Return whether the model server has had `version` ready as far as is known here, and ask nobody."""
        return version in self._proofs or version in self._versions

    def known_proof(self, version: int) -> Proof | None:
        """Return what `proof` would without asking the model; None if it has to be asked."""
        return self._proofs.get(version)

    def proof(self, version: int, *, deadline_s: float = math.inf) -> Proof:
        """Return what this replica makes of the golden seeds: painted once per version, then known.

        All who ask meanwhile wait for one painting of them, until `deadline_s` of time.monotonic at most: it goes on
        without them. Raises what ModelClient does.
        """
        known = self.known_proof(version)
        if known is not None:
            return known
        with self._lock:
            making = self._making.get(version)
            if making is None:
                making = self._making[version] = Future()
                make = carried(self._make)  # the line of the request that is the first to ask says why it failed
                threading.Thread(target=make, args=(version, making), name="proof", daemon=True).start()
        if not wait([making], seconds_until(deadline_s)).done:
            raise ModelTimeout("The caller's time was up before the golden pictures were painted.")
        return making.result()

    def _make(self, version: int, making: Future[Proof]) -> None:
        try:
            making.set_result(self._prove(version))
        except BaseException as error:
            making.set_exception(error)
        finally:
            with self._lock:
                del self._making[version]

    def _prove(self, version: int) -> Proof:
        proofs = self._proofs  # after an outage meanwhile, this one would be of the machine before
        golden = self._client.golden(version)
        seeds = np.arange(sum(PROOF_BATCHES)) if golden is None else golden.seeds
        batches = np.split(seeds, np.cumsum(PROOF_BATCHES)[:-1])
        images = [image for batch in batches for image in self._client.generate(version, batch.tolist())]
        digests, size = [hashlib.sha256(image.tobytes()).digest() for image in images], max(images[0].shape[:2])
        mark = hashlib.sha256(b"".join(digests)).hexdigest()[:8]
        if golden is None:
            proof = Proof(mark, None, size)
            log.warning("Version %d carries no golden digests: what this replica paints is unproved.", version)
        else:
            expected = [row.tobytes() for row in golden.digests]
            differing = sum(found != wanted for found, wanted in zip(digests, expected, strict=True))
            proof = Proof(mark if differing else PROVED, differing, size)
        if proof.differing:
            log.error(
                "This replica paints %d of %d golden pictures of version %d otherwise than the machine of the export: "
                "another kind of processor? Its pictures get ETags of their own class, %s.",
                *(proof.differing, len(digests), version, proof.mark),
            )
        with self._lock:
            if proofs is self._proofs:
                proofs[version] = proof
                if proof.differing is not None:
                    GOLDEN_DIFFERING.labels(version).set(proof.differing)
        return proof
