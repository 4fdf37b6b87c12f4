"""report.html: the results of an evaluation on one self-contained page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from training.data.dataset import PhotosRecord
from training.evaluate.plots import Curves, Numbers, chart_distances, chart_kid, chart_losses
from training.evaluate.results import SMALL, Evaluation
from training.records import write_atomically

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_LOSSLESS = 128  # pixels a side; 180 lossless images of 256 px have 22 MB instead of 5, too much for a mail

Pixels = NDArray[np.uint8]  # [N, S, S, 3], sRGB


@dataclass(frozen=True)
class Pairs:
    """Some images with their nearest training photos, and all distances."""

    images: Pixels  # [K, S, S, 3]
    names: Sequence[str]  # of `images`, such as "seed 17"
    nearest: Pixels  # [K, S, S, 3]
    nearest_names: Sequence[str]  # files
    distances: Numbers  # [K], within each pair
    all_distances: Numbers  # [N], from every image of the kind to its nearest training photo


@dataclass(frozen=True)
class Report:
    """The content of the page; a sentence replaces each missing part."""

    evaluation: Evaluation
    grid: Pixels  # [100, S, S, 3], seeds 0 to 99
    photos: PhotosRecord
    held_out_photos: str  # a sentence
    config: Mapping[str, object]
    rights: Mapping[str, str]  # attribution and licence; may be empty
    missing: Mapping[str, Pixels]  # some photos of each missing variety
    generated: Pairs | None
    held_out: Pairs | None
    interpolations: Mapping[str, Pixels]  # the seeds in words, and the images from the first to the last
    losses: Curves  # the columns of history.csv
    kid: Curves  # the columns of kid.csv: step, kid_x1000, std, minutes


def write_report(path: Path, report: Report) -> None:
    """Write `report` to the HTML file `path`, atomically; names are escaped. Raises OSError."""
    kinds = {"generated images": report.generated, "held-out photos": report.held_out}
    distances = {kind: pairs.all_distances for kind, pairs in kinds.items() if pairs is not None}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"readable": format_value, "uri": data_uri}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    charts: dict[str, object] = {"distances": distances and chart_distances(distances)}
    charts |= {"kid": report.kid and chart_kid(report.kid), "losses": report.losses and chart_losses(report.losses)}
    made_on = f"{datetime.now(UTC):%Y-%m-%d}"
    page = template.render(report=report, evaluation=report.evaluation, small=SMALL, made_on=made_on, **charts)
    write_atomically(path, page.encode("utf-8", "backslashreplace").decode())  # names may not be UTF-8


def format_value(value: object) -> str:
    """Return `value` for readers: 1,900 and 43.58, not 43.5799999."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def data_uri(image: Pixels) -> str:
    """Return `image` uint8[S, S, 3] as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=len(image) <= MAX_LOSSLESS, quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
