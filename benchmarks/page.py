"""Writes docs/benchmarks.md and its charts from benchmarks/results: python -m benchmarks.page."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from benchmarks.rounds import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PARTS = ("serve", "paint", "generator", "train", "memory", "scale")
TITLES = {
    "limit": "limit",
    "session": "limit, in a session",
    "ours": "**ours**",
    "flask": "Flask, `model.predict`",
    "fastapi": "FastAPI",
    "bentoml": "BentoML",
    "litserve": "LitServe",
}
AIM = 10_000  # images a second, of the estimate
UTILISATION = 0.7  # of the autoscalers in k8s/base, as are the limits of the next line
MODEL_SERVER_CORES, GATEWAY_CORES, MAX_REPLICAS = 2, 1, 6
COLOURS = ("#444444", "#c0392b", "#2c7fb8", "#41ab5d", "#d99000", "#8856a7", "#7f7f7f", "#17becf")


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals."""

    subject: str
    wanted: str
    measured: str
    met: bool


def number(value: float, digits: int = 3) -> str:
    """Return `value` with so many significant digits, without an exponent."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results by part, in the order of the page."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text(encoding="utf-8")) for part, file in files.items() if file.exists()}


def at_least(subject: str, value: float, wanted: float, unit: str = "") -> Goal:
    """Return a goal with a lower bound."""
    return Goal(subject, f"at least {wanted:,g}{unit}", f"{number(value)}{unit}", value >= wanted)


def at_most(subject: str, value: float, wanted: float, unit: str = "") -> Goal:
    """Return a goal with an upper bound."""
    return Goal(subject, f"at most {wanted:,g}{unit}", f"{number(value)}{unit}", value <= wanted)


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return the goals of all measured parts."""
    found: list[Goal] = []
    if serve := results.get("serve"):
        at_16, alone = serve["new_seeds"].get("16", {}), serve["new_seeds"].get("1", {})
        if "ours" in at_16:
            found.append(at_least("HTTP at 16 clients, share of the limit", at_16["ours"]["of_limit"]["median"], 0.80))
        if "ours" in alone:
            lone = alone["ours"]["p50_to_limit"]["median"]
            found.append(at_most("p50 of a single client, relative to the limit", lone, 1.35))
        for name, least in (("flask", 2.0), ("fastapi", 1.0), ("bentoml", 1.0), ("litserve", 1.0)):
            if "ours_to_it" in at_16.get(name, {}):
                times = at_16[name]["ours_to_it"]["median"]
                found.append(at_least(f"HTTP at 16 clients, relative to {TITLES[name]}", times, least))
        for name, load in serve.get("cached", {}).items():
            found.append(at_least(f"{name}, requests a second", load["responses_a_second"]["median"], 1_500))
        ours = serve["processes"].get("ours")
        if ours:
            found.append(at_most("gateway worker, memory", ours["largest_mib"]["gateway"], 100, " MiB"))
            ready_s = ours["milestones_s"]
            found.append(at_most("gateway, ready after", ready_s["gateway"] - ready_s["model server"], 2, " s"))
            found.append(at_most("model server, ready after", ready_s["model server"], 8, " s"))
    if paint := results.get("paint"):
        found.append(at_least("`paint`, share of the limit", paint["speed"]["of_limit"]["median"], 0.85))
    if generator := results.get("generator"):
        sides = generator["batches"].get("16", {})
        if "plain SavedModel" in sides:
            times = sides["plain SavedModel"]["ours_to_it"]["median"]
            found.append(at_least("speed of fused relative to plain, batch 16", times, 1.5))
        for library in ("ONNX Runtime", "OpenVINO"):
            rivals = [side["ours_to_it"]["median"] for name, side in sides.items() if name in rival_names(library)]
            if rivals:
                found.append(at_most(f"time of fused relative to {library}, batch 16", 1 / min(rivals), 1.2))
    if train := results.get("train"):
        if "PyTorch" in train["sides"]:
            times = train["sides"]["PyTorch"]["ours_to_it"]["median"]
            found.append(at_least("training speed relative to PyTorch", times, 1.0))
        waiting = 100 * train["data_waiting_share"]["median"]
        found.append(at_most("share of a step that waits for data", waiting, 3, " %"))
    if memory := results.get("memory"):
        for size, mib in memory["peak_mib"].items():
            found.append(at_most(f"peak memory of training at {size} px", mib, memory["limit_mib"], " MiB"))
    return found


def rival_names(library: str) -> tuple[str, ...]:
    """Return the names of a library's two sides in float32."""
    return (f"{library}, plain", f"{library}, fused")


def plan(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the estimate for AIM images a second, from CPU time."""
    scale = results["scale"]
    cost = scale["serving"]["cpu_ms_an_image"]
    model_ms, gateway_ms = cost["model-server"], cost["gateway"]
    a_pod = UTILISATION * 1e3 * MODEL_SERVER_CORES / model_ms  # images a second
    model_pods = math.ceil(AIM / a_pod)
    gateway_pods = math.ceil(AIM * gateway_ms / (UTILISATION * 1e3 * GATEWAY_CORES))
    served = results.get("serve", {})
    held = served.get("processes", {}).get("ours", {}).get("largest_mib", {})
    size = results.get("generator", {}).get("model", {}).get("image_size", 64)
    cached = served.get("cached", {}).get("cached image", {}).get("responses_a_second", {}).get("median", 0.0)
    return {
        "model_ms": model_ms,
        "gateway_ms": gateway_ms,
        "model_cores": round(AIM * model_ms / 1e3),
        "gateway_cores": round(AIM * gateway_ms / 1e3),
        "model_pods": model_pods,
        "gateway_pods": gateway_pods,
        "model_gib": model_pods * held.get("model-server", 0.0) / 1024,
        "gateway_gib": gateway_pods * held.get("gateway", 0.0) / 1024,
        "ends_at": round(MAX_REPLICAS * a_pod),
        "mean": gateway_pods / model_pods,
        "busiest": busiest(gateway_pods, model_pods),
        "pixel_bytes": f"{3 * size * size:,}",
        "pixel_gbit": AIM * 3 * size * size * 8 / 1e9,
        "response_gbit": AIM * scale["serving"]["bytes_an_image"] * 8 / 1e9,
        "cached": cached,
    }


def busiest(connections: int, servers: int) -> float:
    """Return the mean number of connections of the busiest of `servers`."""
    drawn = np.random.default_rng(0).integers(servers, size=(1_000, connections))
    return float(np.mean([np.bincount(row).max() for row in drawn]))


def render(results: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        keep_trailing_newline=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    versions: dict[str, str] = {}
    for part in results.values():
        versions |= part["machine"]["versions"]
    text = environment.get_template("benchmarks.md.jinja").render(
        r=results,
        missing=[part for part in PARTS if part not in results],
        goals=goals(results),
        titles=TITLES,
        plan=plan(results) if "scale" in results else {},
        versions=versions,
        number=number,
    )
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Write the charts as SVG into `folder`; equal results give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Callable[[Any], Figure]] = {
        "serve": serve_chart,
        "generator": generator_chart,
        "train": train_chart,
    }
    with matplotlib.rc_context({"svg.hashsalt": "ringo", "font.size": 9}):
        for part, chart in charts.items():
            if part in results:
                chart(results[part]).savefig(folder / f"{part}.svg", metadata={"Date": None})


def lines(
    figure: Figure, place: int, curves: Mapping[str, Mapping[str, float]], x: str, y: str, *, log: bool = False
) -> Any:
    """Draw `curves`, y by x, at even steps; return the axes."""
    axes = figure.add_subplot(place)
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name, color=colour)
    axes.set(xlabel=x, ylabel=y)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return axes


def name_lines(axes: Any) -> None:
    """Draw the legend to the right of `axes`."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)


def serve_chart(serve: Mapping[str, Any]) -> Figure:
    """Draw images a second and p99 by number of clients."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    sides_drawn = [name for name in TITLES if name != "session"]
    names = [name for name in sides_drawn if any(name in sides for sides in serve["new_seeds"].values())]

    def curves(key: str, left_out: str = "") -> dict[str, dict[str, float]]:
        return {
            TITLES[name].strip("*").replace("`", ""): {
                clients: sides[name][key]["median"]
                for clients, sides in serve["new_seeds"].items()
                if name in sides and name != left_out
            }
            for name in names
        }

    lines(figure, 121, curves("responses_a_second"), "clients", "images a second")
    name_lines(lines(figure, 122, curves("p99_ms", left_out="limit"), "clients", "p99, ms", log=True))
    return figure


def generator_chart(generator: Mapping[str, Any]) -> Figure:
    """Draw milliseconds an image by batch size, without the slow Keras predict."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    curves = {
        name: {size: sides[name]["ms"]["median"] for size, sides in generator["batches"].items()}
        for name in generator["difference_255"]
        if not name.startswith("Keras predict")
    }
    curves["floor"] = dict.fromkeys(generator["batches"], generator["floor_ms"])
    name_lines(lines(figure, 111, curves, "batch size", "ms an image"))
    return figure


def train_chart(train: Mapping[str, Any]) -> Figure:
    """Draw images a second of each side."""
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.add_subplot()
    speeds = {name: side["images_a_second"] for name, side in train["sides"].items()}
    medians = [speed["median"] for speed in speeds.values()]
    reach = [
        [speed["median"] - speed["low"] for speed in speeds.values()],
        [speed["high"] - speed["median"] for speed in speeds.values()],
    ]
    colours = ["#c0392b" if name.startswith("ours") else "#2c7fb8" for name in speeds]
    axes.barh(list(speeds), medians, xerr=reach, color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("images a second")
    return figure


def write_page(results: Mapping[str, Any], page: Path) -> None:
    """Write `page`, and the charts into the folder of its name."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(results), encoding="utf-8")
    draw(results, page.with_suffix(""))


def main() -> int:
    """Write docs/benchmarks.md; return 1 if nothing is measured yet."""
    results = read_results(RESULTS)
    if not results:
        print(f"{RESULTS.name} has no results; run `make bench` first.", file=sys.stderr)
        return 1
    write_page(results, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
