"""What an evaluation finds: evaluation.json, as dataclasses, and in a reader's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import RecordError
from training.records import read_record


@dataclass(frozen=True)
class Distances:
    """How far pictures are from photos, between the features of both."""

    pictures: int
    photos: int
    kid_x1000: float
    kid_x1000_std: float
    fid: float | None  # None where the two numbers differ: it depends on them


@dataclass(frozen=True)
class Nearness:
    """How far from the nearest training photo: the middle of the distances, and the one that 5 % are below."""

    median: float
    closest_5_percent: float


@dataclass(frozen=True)
class Copies:
    """Whether pictures lie closer to the photos trained on than photos of the same kind that were held out."""

    pictures_by_pixels: Nearness  # RMS of 255 between pictures of 32x32
    held_out_by_pixels: Nearness | None
    pictures_by_features: Nearness  # RMS
    held_out_by_features: Nearness | None
    verdict: str


@dataclass(frozen=True)
class Coverage:
    """Which varieties of the photos the pictures show: a picture shows that of the photo nearest by features.

    A variety is covered if its share of the pictures is at least `needed` times its share of the photos.
    """

    rule: str  # how varieties were told apart
    needed: float
    photos: dict[str, float]  # shares
    pictures: dict[str, float]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """How good the pictures of a model are."""

    model: str
    batch: int | None  # of the checkpoint; None where a version does not say
    features: str
    photos: str  # the folder's name
    against_all: Distances
    against_held_out: Distances | None
    copies: Copies | None
    coverage: Coverage
    remarks: tuple[str, ...]  # why something is missing

    def rows(self) -> dict[str, str]:
        """Return the figures in words, by what they are about."""
        rows = {
            "KID x1000, against all photos": _kid(self.against_all),
            "FID, against all photos": f"{self.against_all.fid} ({self.against_all.pictures:,} of each)",
        }
        if self.against_held_out:
            rows["KID x1000, against photos held out of training"] = _kid(self.against_held_out)
        if self.copies:
            rows["copies"] = self.copies.verdict
        varieties = len(self.coverage.photos)
        missing = f"; missing: {', '.join(self.coverage.missing)}" if self.coverage.missing else ""
        covered = (
            f"{varieties - len(self.coverage.missing)} of {varieties}, told apart by {self.coverage.rule}{missing}"
        )
        rows |= {
            "varieties covered": covered,
            "features": f"{self.features}: compare only with figures of the same",
            "compared with": f"the folder {self.photos}",
        }
        return rows | ({"remarks": " ".join(self.remarks)} if self.remarks else {})


def _kid(found: Distances) -> str:
    numbers = f"{found.pictures:,} pictures, {found.photos:,} photos"
    return f"{found.kid_x1000} ± {found.kid_x1000_std} ({numbers})"


def read_evaluation(path: Path) -> Evaluation:
    """Return what was written to evaluation.json. Raises RecordError if it is damaged or of another layout."""
    record = read_record(path)
    try:
        copies, coverage, held_out = record["copies"], record["coverage"], record["against_held_out"]
        record |= {
            "against_all": Distances(**record["against_all"]),
            "against_held_out": held_out and Distances(**held_out),
            "copies": copies and _read_copies(copies),
            "coverage": Coverage(**coverage | {"missing": tuple(coverage["missing"])}),
            "remarks": tuple(record["remarks"]),
        }
        return Evaluation(**record)
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path} is not an evaluation of this program: {error}.") from error


def _read_copies(record: Mapping[str, Any]) -> Copies:
    parts: dict[str, Any] = {}
    for name, part in record.items():
        parts[name] = Nearness(**part) if isinstance(part, dict) else part
    return Copies(**parts)
