"""What this process knows of the model server: which versions it has, and whether it paints what the exporter did."""

import hashlib
import logging
import threading
import time
from dataclasses import dataclass

import numpy as np

from serving.errors import ModelTimeout, ModelUnavailable
from serving.metrics import GOLDEN_DIFFERING
from serving.model_client import ModelClient
from serving.single_flight import SingleFlight

log = logging.getLogger(__name__)

PROVED = "proved"
VERSIONS_KEPT_S = 1.0  # as often as TensorFlow Serving looks for new ones
# In the allowed batch sizes, together 64: a replica where a picture depends on the size of its batch shows it.
PROOF_BATCHES = (1, 1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Proof:
    """What a replica made of the golden seeds."""

    mark: str  # PROVED, or a name for what it painted instead: replicas of one mark paint the same bytes
    differing: int | None  # of the golden pictures; None if the model was exported without their digests
    size: int  # pixels of the longer side of the model's pictures

    @property
    def verdict(self) -> str:
        """One word for people: proved, unproved or differs."""
        return "unproved" if self.differing is None else "differs" if self.differing else PROVED


class Replica:
    """The model server behind one client. Threads may share it."""

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self._proofs: dict[int, Proof] = {}  # of the machine that has answered since the last outage
        self._lock = threading.Lock()  # guards what follows
        self._versions: list[int] = []
        self._asked_at_s = -VERSIONS_KEPT_S
        self._lost = False
        self._flight = SingleFlight[int, Proof]()

    def versions(self, *, ask: bool = False) -> list[int]:
        """Return the loaded versions, oldest first, as they were at most VERSIONS_KEPT_S ago; with `ask`, as they are.

        While nobody answers, and without `ask`, they are the last that were known: a picture that is kept, here or by
        the caller, needs no model server. Raises ModelUnavailable or ModelTimeout.
        """
        with self._lock:
            if ask or not self._versions or time.monotonic() - self._asked_at_s >= VERSIONS_KEPT_S:
                try:
                    self._versions = self._client.available_versions()
                except (ModelUnavailable, ModelTimeout) as error:
                    self._lost = self._lost or isinstance(error, ModelUnavailable)
                    if ask or not self._versions:
                        raise
                else:
                    if self._lost:  # what came back may be another machine
                        self._proofs = {}
                    self._lost = False
                finally:
                    self._asked_at_s = time.monotonic()
            return self._versions

    def proof(self, version: int) -> Proof:
        """Return what this replica makes of the golden seeds: painted once per version, then known."""
        known = self._proofs.get(version)
        if known is None:
            known = self._flight.do(version, lambda: self._prove(version))
        return known

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
            GOLDEN_DIFFERING.labels(version).set(differing)
        if proof.differing:
            log.error(
                "This replica paints %d of %d golden pictures of version %d otherwise than the machine of the export: "
                "another kind of processor? Its pictures get ETags of their own class, %s.",
                *(proof.differing, len(digests), version, proof.mark),
            )
        proofs[version] = proof
        return proof
