"""report.html: what an evaluation found, on one page that needs nothing else, for somebody who is learning GANs."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from training.evaluate.plots import Curves, Numbers, chart_distances, chart_kid, chart_losses
from training.evaluate.results import SMALL, Evaluation
from training.records import write_atomically

TEMPLATE = Path(__file__).with_name("report.html.jinja")
LARGEST_LOSSLESS = 128  # pixels a side: 180 photos of 256 would be 22 MB instead of 5, on a page to be mailed

Pixels = NDArray[np.uint8]  # [N, S, S, 3], sRGB


@dataclass(frozen=True)
class Pairs:
    """A few pictures, each beside the training photo nearest to it, and how far all pictures of their kind are."""

    pictures: Pixels  # [K, S, S, 3]
    names: Sequence[str]  # of `pictures`, such as "seed 17"
    nearest: Pixels  # [K, S, S, 3]
    nearest_names: Sequence[str]  # files
    distances: Numbers  # [K], within each pair
    all_distances: Numbers  # [N], from every picture of the kind to the training photo nearest to it


@dataclass(frozen=True)
class Morph:
    """Pictures of the latents that `slerp` lays between those of two seeds, both included."""

    first_seed: int
    last_seed: int
    pictures: Pixels  # [K, S, S, 3]


@dataclass(frozen=True)
class DataSummary:
    """Whose photos they are, and what became of them."""

    files: int
    used: int
    skipped: Mapping[str, int]  # reason to count
    held_out: str  # how many
    licence: str
    attribution: str


@dataclass(frozen=True)
class Report:
    """All that is on the page. What is None or empty is left out with a sentence that says so."""

    evaluation: Evaluation
    grid: Pixels  # [100, S, S, 3], seeds 0 to 99
    data: DataSummary
    generated: Pairs | None = None
    held_out: Pairs | None = None
    morphs: Sequence[Morph] = ()
    losses: Curves = field(default_factory=dict)  # the columns of history.csv
    kid: Curves = field(default_factory=dict)  # the columns of kid.csv: step, kid_x1000, std, minutes
    config: Mapping[str, object] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> None:
    """Write `report` to the HTML file `path`, whole or not at all. Raises OSError.

    Names of files and people are untrusted: whatever they hold is shown as text.
    """
    kinds = {"generated pictures": report.generated, "held-out photos": report.held_out}
    distances = {kind: pairs.all_distances for kind, pairs in kinds.items() if pairs is not None}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"readable": readable, "uri": data_uri}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        found=report.evaluation,
        small=SMALL,
        distances=distances and chart_distances(distances),
        kid=chart_kid(report.kid),
        losses=chart_losses(report.losses),
        made_on=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    write_atomically(path, page.encode("utf-8", "backslashreplace").decode())  # names may hold bytes that are not UTF-8


def readable(value: object) -> str:
    """Return `value` as a person writes it: 1,900 and 43.58, not 43.5799999."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def data_uri(picture: Pixels) -> str:
    """Return `picture` uint8[S, S, 3] as the address of an image that holds it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", lossless=len(picture) <= LARGEST_LOSSLESS, quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
