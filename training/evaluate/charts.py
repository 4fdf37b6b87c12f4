"""Line charts as numbers in percent, for a page that draws them at any width and in any colours."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

MOST_POINTS = 300  # of a line: a phone shows no more, and the mean of what falls together is easier to read
BINS = 40  # of a histogram
KID_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

Numbers = NDArray[np.floating[Any]]  # [N]
Curves = Mapping[str, Numbers]  # the columns of a CSV file


@dataclass(frozen=True)
class Line:
    """One line of a chart; places are percent of its width and height, from the upper left."""

    name: str
    points: str  # "x,y x,y ..."
    area: str = ""  # the same for a polygon in the line's colour


@dataclass(frozen=True)
class Chart:
    """Lines over a common pair of axes."""

    summary: str  # what is to be seen, also for who cannot see it
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]  # percent from the left, and what is written there
    y_ticks: Sequence[tuple[float, str]]  # percent from the top


@dataclass(frozen=True)
class _Axis:
    """Numbers from `low` to `high` on 0 to 100 percent."""

    low: float
    high: float
    scale: Callable[[Numbers], Numbers] = np.asarray

    def place(self, values: Numbers) -> Numbers:
        low, high = self.scale(np.array([self.low, self.high]))
        placed: Numbers = 100 * (self.scale(values) - low) / ((high - low) or 1.0)
        return placed

    def ticks(self, values: Sequence[float] | None = None) -> list[tuple[float, str]]:
        values = MaxNLocator(5).tick_values(self.low, self.high) if values is None else values
        inside = np.array([value for value in values if self.low <= value <= self.high])
        return [(float(place), f"{value:,.6g}") for place, value in zip(self.place(inside), inside, strict=True)]

    def ticks_from_top(self, values: Sequence[float] | None = None) -> list[tuple[float, str]]:
        return [(100 - place, label) for place, label in self.ticks(values)]


def line_chart(curves: Curves, labels: Mapping[str, str], highest: float = 0.0) -> Chart | None:
    """Return the columns named in `labels` over the column `step`; None if `curves` lacks one of them.

    The vertical axis goes from 0 to the largest value, or to `highest` if that is more.
    """
    if not {"step", *labels} <= curves.keys():
        return None
    rows = len(curves["step"])
    together = math.ceil(rows / MOST_POINTS)
    cuts = range(together, rows, together)
    steps, *lines = (np.array([p.mean() for p in np.array_split(curves[name], cuts)]) for name in ("step", *labels))
    x, y = _Axis(steps[0], steps[-1]), _Axis(0.0, max(highest, *(line.max() for line in lines)))
    told = [f"{label} from {line[0]:.3g} to {line[-1]:.3g}" for label, line in zip(labels.values(), lines, strict=True)]
    averaged = f" Each point is the mean of {together} rows of history.csv." * (together > 1)
    return Chart(
        f"Batches {curves['step'][0]:,.0f} to {curves['step'][-1]:,.0f}: {', '.join(told)}.{averaged}",
        [Line(label, _points(x, steps, y, line)) for label, line in zip(labels.values(), lines, strict=True)],
        x.ticks(),
        y.ticks_from_top(),
    )


def kid_chart(curves: Curves) -> Chart | None:
    """Return `kid_x1000` over `step` on a logarithmic scale in a band of `std`; None if `curves` lacks one of them.

    KID is unbiased, so it may be negative near 0: everything below 1 is drawn as 1.
    """
    if not {"step", "kid_x1000", "std"} <= curves.keys():
        return None
    steps, kid, deviation = curves["step"], curves["kid_x1000"], curves["std"]
    low, middle, high = (np.maximum(values, 1.0) for values in (kid - deviation, kid, kid + deviation))
    x, y = _Axis(steps[0], steps[-1]), _Axis(low.min(), high.max(), np.log10)
    best = kid.argmin()
    return Chart(
        f"From {kid[0]:.3g} at batch {steps[0]:,.0f} to {kid[-1]:.3g} at batch {steps[-1]:,.0f}; "
        f"the lowest is {kid[best]:.3g} at batch {steps[best]:,.0f}.",
        [
            Line(
                "KID × 1000",
                _points(x, steps, y, middle),
                f"{_points(x, steps, y, high)} {_points(x, steps[::-1], y, low[::-1])}",
            )
        ],
        x.ticks(),
        y.ticks_from_top(KID_TICKS),
    )


def histogram_chart(kinds: Mapping[str, Numbers]) -> Chart:
    """Return how often each value occurs, one histogram for each of `kinds` (label to values >= 0), of equal areas."""
    edges = np.linspace(0.0, max(values.max() for values in kinds.values()) or 1.0, BINS + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for values in kinds.values()]
    x, y = _Axis(0.0, edges[-1]), _Axis(0.0, max(share.max() for share in shares))
    corners = np.repeat(edges, 2)[1:-1]  # of the stairs: left and right of each bin
    stairs = [_points(x, corners, y, np.repeat(share, 2)) for share in shares]
    return Chart(
        f"Medians: {', '.join(f'{label} {np.median(values):.3g}' for label, values in kinds.items())}.",
        [Line(label, points, f"0,100 {points} 100,100") for label, points in zip(kinds, stairs, strict=True)],
        x.ticks(),
        [],
    )


def _points(x: _Axis, xs: Numbers, y: _Axis, ys: Numbers) -> str:
    points = [f"{left:.2f},{100 - up:.2f}" for left, up in zip(x.place(xs), y.place(ys), strict=True)]
    return " ".join(points if len(points) > 1 else points * 2)  # a line of one point has no length, and no ink
