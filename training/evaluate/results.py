"""What an evaluation finds: evaluation.json, as dataclasses, and in a reader's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import RecordError
from training.records import read_record

SMALL = 32  # pixels: the side at which pictures are compared by pixels; finer detail would hide likeness
CLOSE = 0.05  # what part of the held-out photos counts as close to training photos; by chance as many pictures are
RARE = 0.5  # of its share of the photos: a variety below is named
MOST_CLOSE = 0.20  # part of the pictures that may be: arcs are alike within, so 700 photos of 31 arcs tell as 31 do


@dataclass(frozen=True)
class Distances:
    """How far pictures are from photos, between the features of both."""

    pictures: int
    photos: int
    kid_x1000: float
    kid_x1000_std: float
    fid: float | None  # None where the two numbers differ: it depends on them


@dataclass(frozen=True)
class Judgement:
    """The distances that one judge found."""

    features: str  # the judge's name
    against_all: Distances
    against_held_out: Distances | None  # None where too few photos were held out


@dataclass(frozen=True)
class Nearness:
    """How far from the nearest training photo: the middle of the distances, and the one that 5 % are below."""

    median: float
    closest_5_percent: float


@dataclass(frozen=True)
class Verdict:
    """Whether a generator copies: a headline, and the numbers that it follows from."""

    level: Literal["good", "bad", "unknown"]
    headline: str
    explanation: str


@dataclass(frozen=True)
class Copies:
    """Whether pictures lie closer to the photos trained on than photos of the same kind that were held out."""

    pictures_by_pixels: Nearness  # RMS of 255 between pictures of SMALL x SMALL
    held_out_by_pixels: Nearness | None
    pictures_by_features: Nearness  # RMS
    held_out_by_features: Nearness | None
    verdict: Verdict


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

    def sentence(self) -> str:
        """Return how many varieties are covered, and which have less than half of their share."""
        total = len(self.photos)
        parts = [f"{total - len(self.missing)} of {total}, told apart by {self.rule}"]
        if self.missing:
            parts.append(f"missing: {', '.join(self.missing)}")
        shares = {name: self.pictures[name] / share for name, share in self.photos.items() if share > 0}
        rare = sorted((share, name) for name, share in shares.items() if share < RARE and name not in self.missing)
        if rare:
            parts.append(
                "rare, as a fraction of their share: " + ", ".join(f"{name} {share:.2f}" for share, name in rare)
            )
        return "; ".join(parts)


@dataclass(frozen=True)
class Evaluation:
    """How good the pictures of a model are."""

    model: str
    batch: int | None  # of the checkpoint; None where a version does not say
    features: str
    photos: str  # the folder's name
    seeds: str  # of the images compared
    against_all: Distances
    against_held_out: Distances | None
    other_judges: tuple[Judgement, ...]
    copies: Copies | None
    coverage: Coverage
    remarks: tuple[str, ...]  # why something is missing

    @property
    def verdict(self) -> Verdict:
        """Whether the model copies."""
        if self.copies:
            return self.copies.verdict
        return Verdict("unknown", "Not checked for copies.", "No distance to a photo trained on was measured.")

    def rows(self) -> dict[str, str]:
        """Return the figures in words, by what they are about."""
        rows = {
            "KID x1000, against all photos": _kid(self.against_all),
            "FID, against all photos": f"{self.against_all.fid} ({self.against_all.pictures:,} of each)",
        }
        if self.against_held_out:
            rows["KID x1000, against photos held out of training"] = _kid(self.against_held_out)
        for judge in self.other_judges:
            rows[f"KID x1000 by {judge.features}, against all photos"] = _kid(judge.against_all)
            rows[f"FID by {judge.features}, against all photos"] = str(judge.against_all.fid)
            if judge.against_held_out:
                rows[f"KID x1000 by {judge.features}, against photos held out"] = _kid(judge.against_held_out)
        rows |= {
            "varieties covered": self.coverage.sentence(),
            "copies": f"{self.verdict.headline} {self.verdict.explanation}",
            "features": f"{self.features}: compare only with figures of the same",
            "compared with": f"the folder {self.photos}; seeds {self.seeds}",
        }
        return rows | ({"remarks": " ".join(self.remarks)} if self.remarks else {})


def _kid(found: Distances) -> str:
    numbers = f"{found.pictures:,} pictures, {found.photos:,} photos"
    return f"{found.kid_x1000} ± {found.kid_x1000_std} ({numbers})"


def judge_copies(
    generated: NDArray[np.float32], held_out: NDArray[np.float32] | None, *, space: str = f"pixels at {SMALL}x{SMALL}"
) -> Verdict:
    """Return whether generated images lie closer to the training photos than held-out photos do.

    Both are distances to the nearest training photo in `space`. A generator that copies has a smaller median than
    unseen photos; one that copies in part has too many images closer than nearly all unseen photos are.
    """
    median = float(np.median(generated))
    typical = f"Typical distance to the nearest training photo in {space} (0 is identical): generated {median:.3g}"
    if held_out is None:
        return Verdict("unknown", "Not checked for copies.", f"{typical}; no photo was held out to compare with.")
    usual, close = np.quantile(held_out, [0.5, CLOSE])
    share = float((generated < close).mean())
    explanation = (
        f"{typical}, unseen photos {usual:.3g}; {100 * share:.1f} % of the images are closer than the closest "
        f"{100 * CLOSE:.0f} % of unseen photos ({close:.3g})."
    )
    if median < usual:
        return Verdict("bad", "The images are closer to the training photos than unseen photos are.", explanation)
    # The closest of a few photos may lie anywhere: three deviations of chance are 0.32 with 6, MOST_CLOSE with 19.
    if share > max(MOST_CLOSE, CLOSE + 3.0 * math.sqrt(CLOSE * (1.0 - CLOSE) / len(held_out))):
        return Verdict("bad", "Some images look like copies.", explanation)
    return Verdict("good", "No sign of copying.", explanation)


def worse(first: Verdict, second: Verdict) -> Verdict:
    """Return the worse of two verdicts with the explanations of both."""
    order = ("bad", "unknown", "good")
    worst = min(first, second, key=lambda verdict: order.index(verdict.level))
    return Verdict(worst.level, worst.headline, f"{first.explanation} {second.explanation}")


def read_evaluation(path: Path) -> Evaluation:
    """Return what was written to evaluation.json. Raises RecordError if it is damaged or of another layout."""
    record = read_record(path)
    try:
        copies, coverage, held_out = record["copies"], record["coverage"], record["against_held_out"]
        record |= {
            "against_all": Distances(**record["against_all"]),
            "against_held_out": held_out and Distances(**held_out),
            "other_judges": tuple(map(_read_judgement, record["other_judges"])),
            "copies": copies and _read_copies(copies),
            "coverage": Coverage(**coverage | {"missing": tuple(coverage["missing"])}),
            "remarks": tuple(record["remarks"]),
        }
        return Evaluation(**record)
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path} is not an evaluation of this program: {error}.") from error


def _read_judgement(record: Mapping[str, Any]) -> Judgement:
    held_out = record["against_held_out"]
    return Judgement(record["features"], Distances(**record["against_all"]), held_out and Distances(**held_out))


def _read_copies(record: Mapping[str, Any]) -> Copies:
    parts = {name: part and Nearness(**part) for name, part in record.items() if name != "verdict"}
    return Copies(**parts, verdict=Verdict(**record["verdict"]))
