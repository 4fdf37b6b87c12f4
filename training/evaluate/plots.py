"""Charts of a training run and of its evaluation, drawn by matplotlib."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 300  # of a line; more show only noise
BINS = 40  # of a histogram
KID_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LABELS = {"g_loss": "generator", "d_loss": "discriminator", "d_real": "D(real)", "d_generated": "D(generated)"}

Numbers = NDArray[np.floating[Any]]  # [N]
Curves = Mapping[str, Numbers]  # the columns of a CSV file
Figure = Any  # of matplotlib, which takes 0.5 s to import


@dataclass(frozen=True)
class Chart:
    """An image, and a sentence with its numbers."""

    title: str
    summary: str
    image: str = ""  # SVG as a data URI; empty for a single measurement


def draw_losses(curves: Curves) -> Figure:
    """Return a figure of the columns LABELS over the column `step`."""
    figure, (losses, outputs) = _new_figure(height=5.0, panels=2)
    rows_a_point = math.ceil(len(curves["step"]) / MAX_POINTS)
    cuts = range(rows_a_point, len(curves["step"]), rows_a_point)
    means = {name: [part.mean() for part in np.array_split(curves[name], cuts)] for name in ("step", *LABELS)}
    for name, label in LABELS.items():
        panel = losses if name.endswith("loss") else outputs
        panel.plot(means["step"], means[name], "-" if len(means["step"]) > 1 else "o", label=label, linewidth=1)
    for panel, label in ((losses, "loss"), (outputs, "output of the discriminator")):
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.legend()
    outputs.set_xlabel("batch")
    return figure


def chart_losses(curves: Curves) -> Chart:
    """Return the chart of the losses."""
    title, steps = "Losses and outputs of the discriminator by batch", curves["step"]
    if len(steps) == 1:
        values = {label: f"{curves[name][0]:.3g}" for name, label in LABELS.items()}
        return Chart(title, _sentence(f"Batch {steps[0]:,.0f}", values))
    ranges = {label: f"from {curves[name][0]:.3g} to {curves[name][-1]:.3g}" for name, label in LABELS.items()}
    summary = _sentence(f"Batches {steps[0]:,.0f} to {steps[-1]:,.0f}", ranges)
    return Chart(title, summary, _data_uri(draw_losses(curves)))


def chart_kid(curves: Curves) -> Chart:
    """Return the chart of KID by batch and minutes. Values below 1, also negative ones, are drawn as 1."""
    title = "KID × 1000 by batch and minutes of training"
    steps, kid, deviation, minutes = (curves[name] for name in ("step", "kid_x1000", "std", "minutes"))

    def moment(row: int) -> str:
        return f"batch {steps[row]:,.0f} after {minutes[row]:,.0f} minutes"

    def tick(step: float, _: int) -> str:
        return f"{step:,.0f}\n{np.interp(step, steps, minutes):,.0f} min"

    if len(steps) == 1:
        return Chart(title, f"KID × 1000 was measured once: {kid[0]:.3g} ± {deviation[0]:.2g} at {moment(0)}.")
    figure, axes = _new_figure(height=3.2)
    low, middle, high = (np.maximum(values, 1.0) for values in (kid - deviation, kid, kid + deviation))
    axes.plot(steps, middle, marker=".")
    axes.fill_between(steps, low, high, alpha=0.2)
    axes.set(yscale="log", xlabel="batch", ylabel="KID × 1000", yticks=KID_TICKS)
    axes.set(ylim=(0.9 * low.min(), 1.1 * high.max()))
    axes.margins(x=0)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(tick)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    best = int(kid.argmin())
    summary = f"From {kid[0]:.3g} at {moment(0)} to {kid[-1]:.3g} at {moment(-1)}. The lowest is {kid[best]:.3g} "
    return Chart(title, f"{summary}at {moment(best)}.", _data_uri(figure))


def chart_distances(kinds: Mapping[str, Numbers]) -> Chart:
    """Return a histogram of each of `kinds`, all of equal area. `kinds` maps labels to values >= 0."""
    figure, axes = _new_figure(height=3.2)
    edges = np.linspace(0.0, max(values.max() for values in kinds.values()) or 1.0, BINS + 1)
    for label, values in kinds.items():
        axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.4, label=label)
    axes.set(xlabel="distance to the nearest training photo", yticks=[])
    axes.legend()
    medians = {label: f"{np.median(values):.3g}" for label, values in kinds.items()}
    summary = _sentence("How often each distance occurs. Medians", medians)
    return Chart("Histogram of distances", summary, _data_uri(figure))


def _new_figure(height: float, panels: int = 1) -> tuple[Figure, Any]:
    from matplotlib import rcdefaults
    from matplotlib.figure import Figure  # no global state: pyplot would keep every figure

    rcdefaults()  # settings of the user, such as text.usetex, may raise an error
    figure = Figure(figsize=(6.5, height), layout="constrained")
    return figure, figure.subplots(panels, sharex=True)


def _sentence(subject: str, numbers: Mapping[str, str]) -> str:
    return f"{subject}: {', '.join(f'{label} {number}' for label, number in numbers.items())}."


def _data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
