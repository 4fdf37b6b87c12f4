"""The results of an evaluation: evaluation.json as dataclasses, and in words."""

from dataclasses import dataclass
from typing import Literal

SMALL = 32  # pixels; images are compared at this size, because finer detail would hide similarity
BUNDLED_KID_X1000, BUNDLED_VARIETIES = 3.31, "15 of 15"  # on the card of models/apple
GOOD_KID, BAD_KID = 1 / 30, 1 / 8  # of noise's KID, which is about 750
GOOD_COVERAGE, BAD_COVERAGE = 3 / 4, 1 / 2  # of the varieties
RARE_SHARE = 0.5  # of its share of the photos; a variety below it is named


@dataclass(frozen=True)
class Distances:
    """The distances between the features of images and photos."""

    images: int
    photos: int
    kid_x1000: float
    kid_x1000_std: float
    fid: float | None  # None if the numbers differ, because FID depends on them


@dataclass(frozen=True)
class FeatureDistances:
    """The distances by one feature network."""

    features: str  # name of the network
    against_all: Distances
    against_held_out: Distances | None  # None if too few photos are held out


@dataclass(frozen=True)
class NearestDistances:
    """Quantiles of the distances to the nearest training photo."""

    median: float
    closest_5_percent: float


@dataclass(frozen=True)
class Verdict:
    """A judgement of a generator: a headline, and an explanation with numbers."""

    level: Literal["good", "bad", "unknown"]
    headline: str
    explanation: str


@dataclass(frozen=True)
class CopyCheck:
    """Distances of images and of other photos to the training photos."""

    images_by_pixels: NearestDistances  # RMS of 0 to 255, between images of SMALL x SMALL
    others_by_pixels: NearestDistances
    images_by_features: NearestDistances  # RMS
    others_by_features: NearestDistances
    verdict: Verdict


@dataclass(frozen=True)
class Coverage:
    """The share of each variety among photos and images.

    The variety of an image is that of the nearest photo by features. A variety is covered if its share of the images is
    at least `needed` times its share of the photos.
    """

    rule: str  # that identified the varieties
    needed: float
    photos: dict[str, float]  # variety to share
    images: dict[str, float]
    missing: tuple[str, ...]

    @property
    def covered(self) -> int:
        """The number of varieties that are not missing."""
        return len(self.photos) - len(self.missing)

    def describe(self) -> str:
        """Return the covered, missing and rare varieties in words."""
        parts = [f"{self.covered} of {len(self.photos)}, identified by {self.rule}"]
        if self.missing:
            parts.append(f"missing: {', '.join(self.missing)}")
        shares = {name: self.images[name] / share for name, share in self.photos.items() if share > 0}
        rare = sorted((share, name) for name, share in shares.items() if share < RARE_SHARE)
        named = [f"{name} {share:.2f}" for share, name in rare if name not in self.missing]
        if named:
            parts.append(f"rare, as a fraction of their share: {', '.join(named)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class References:
    """The results of a perfect copy of the photos, and of noise."""

    copy_kid_x1000: float  # of one half of the photos against the other
    noise_kid_x1000: float
    noise_varieties: int  # covered by noise


@dataclass(frozen=True)
class Evaluation:
    """All results for one model."""

    model: str
    batch: int | None  # of the checkpoint; None if the version has no record of it
    features: str  # name of the first feature network
    photos: str  # name of the folder
    seeds: str  # of the generated images
    against_all: Distances
    against_held_out: Distances | None
    other_features: tuple[FeatureDistances, ...]
    copies: CopyCheck | None
    coverage: Coverage
    references: References
    remarks: tuple[str, ...]  # why a result is missing
    selector: str = ""  # digest of the run's selector

    @property
    def verdict(self) -> Verdict:
        """Whether the model copies."""
        if self.copies:
            return self.copies.verdict
        return Verdict("unknown", "Not checked for copies.", "No distance to a training photo was measured.")

    @property
    def quality(self) -> Verdict:
        """Whether the images resemble the photos, in all varieties."""
        references, covered, total = self.references, self.coverage.covered, len(self.coverage.photos)
        kid, noise = self.against_all.kid_x1000, references.noise_kid_x1000
        explanation = (
            f"KID x1000 is {kid:.3g}. A perfect copy of the photos has {references.copy_kid_x1000:.2g}, the bundled "
            f"model {BUNDLED_KID_X1000} (for its own photos, by EfficientNet-Lite0), noise {noise:.3g}. {covered} of "
            f"{total} varieties are covered. A perfect copy covers {total}, the bundled model {BUNDLED_VARIETIES}, "
            f"noise {references.noise_varieties}."
        )
        if covered < BAD_COVERAGE * total:
            return Verdict("bad", f"The images show only {covered} of {total} varieties.", explanation)
        if kid > BAD_KID * noise:
            return Verdict("bad", "The images are far from the photos.", explanation)
        if self.verdict.level == "bad":
            return Verdict("bad", "The images resemble the photos, because many are copies.", explanation)
        if kid > GOOD_KID * noise or covered < GOOD_COVERAGE * total:
            return Verdict("unknown", "The images resemble the photos in part.", explanation)
        return Verdict("good", "The images resemble the photos.", explanation)

    def format_rows(self) -> dict[str, str]:
        """Return the results in words, by label."""
        rows = {
            "in short": f"{self.quality.headline} {self.quality.explanation}",
            "KID x1000, against all photos": _format_kid(self.against_all),
            "FID, against all photos": f"{self.against_all.fid} ({self.against_all.images:,} of each)",
        }
        if self.against_held_out:
            rows["KID x1000, against photos held out of training"] = _format_kid(self.against_held_out)
        for other in self.other_features:
            rows[f"KID x1000 by {other.features}, against all photos"] = _format_kid(other.against_all)
            rows[f"FID by {other.features}, against all photos"] = str(other.against_all.fid)
            if other.against_held_out:
                rows[f"KID x1000 by {other.features}, against photos held out"] = _format_kid(other.against_held_out)
        rows |= {
            "varieties covered": self.coverage.describe(),
            "copies": f"{self.verdict.headline} {self.verdict.explanation}",
            "features": f"{self.features}; compare only figures by the same features",
            "compared with": f"the folder {self.photos}; seeds {self.seeds}",
        }
        return rows | ({"remarks": " ".join(self.remarks)} if self.remarks else {})


def _format_kid(distances: Distances) -> str:
    numbers = f"{distances.images:,} images, {distances.photos:,} photos"
    return f"{distances.kid_x1000} ± {distances.kid_x1000_std} ({numbers})"
