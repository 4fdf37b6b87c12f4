"""Writes docs/benchmarks.md and the sizes in docs/operations.md from benchmarks/results: python -m benchmarks.page."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from benchmarks.rounds import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
OPERATIONS = PAGE.with_name("operations.md")  # its table of sizes lies between these lines:
SIZES_BEGIN, SIZES_END = "<!-- Written by python -m benchmarks.page. -->\n", "<!-- End. -->\n"
PARTS = ("serve", "paint", "generator", "train", "memory", "scale")
TITLES = {
    "limit": "reference",
    "session": "reference, in a session",
    "ours": "Ringo",
    "genuine": "Ringo with TensorFlow Serving",
    "flask": "Flask, `model.predict`",
    "fastapi": "FastAPI",
    "bentoml": "BentoML",
    "litserve": "LitServe",
}
PEERS = ("fastapi", "bentoml", "litserve")
CACHED = {"nginx": "nginx", "gateway": "gateway", "304": "gateway, 304"}
EURO_A_CORE_HOUR = 0.04  # of large clouds, on demand, memory included
AIM = 10_000  # images a second, of the plan
HIT_RATES = (0.0, 0.5, 0.95)  # of a CDN
UTILISATION = 0.7  # of the requested cores, as for the autoscalers in k8s/base
GATEWAY_CORES, MODEL_SERVER_CORES = 0.25, 1.0  # requested by a pod in k8s/base
MIN_PODS = 2  # of each autoscaler in k8s/base
EMBEDDED = "embedded model server"
NOT_MEASURED = "not measured"
RINGO, LIMIT, PEER = "#c0392b", "#444444", "#2c7fb8"
COLOURS = (LIMIT, RINGO, "#e8998d", PEER, "#41ab5d", "#d99000", "#8856a7")


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals."""

    subject: str
    wanted: str
    measured: str
    met: bool | None  # None if not measured


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


def at_least(subject: str, value: float | None, wanted: float, unit: str = "") -> Goal:
    """Return a goal with a lower bound; `value` is None if not measured."""
    is_met = None if value is None else value >= wanted
    return Goal(subject, f"at least {wanted:,g}{unit}", measured(value, unit), is_met)


def at_most(subject: str, value: float | None, wanted: float, unit: str = "") -> Goal:
    """Return a goal with an upper bound; `value` is None if not measured."""
    is_met = None if value is None else value <= wanted
    return Goal(subject, f"at most {wanted:,g}{unit}", measured(value, unit), is_met)


def measured(value: float | None, unit: str) -> str:
    """Return `value` with its unit."""
    return NOT_MEASURED if value is None else f"{number(value)}{unit}"


def find(result: Any, *path: str) -> Any:
    """Return the value at `path` in nested results, or None."""
    for key in path:
        result = result.get(key) if result else None
    return result


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return the goals of all measured parts."""
    found: list[Goal] = []
    if serve := largest(results):
        found += serve_goals(serve)
    if paint := results.get("paint"):
        size = max(paint["speed"], key=int)
        found.append(at_least("`paint`, share of the reference", paint["speed"][size]["of_limit"]["median"], 0.88))
    if train := results.get("train"):
        times = find(train, "sides", "PyTorch", "ours_to_it", "median")
        found.append(at_least(f"training speed relative to PyTorch, {train['image_size']} px", times, 1.2))
        waiting = 100 * train["data_waiting_share"]["median"]
        goal = at_most(f"share of a training step that waits for data, {train['image_size']} px", waiting, 3, " %")
        if waiting < 0:
            goal = replace(goal, measured="not measurable (the difference is negative)", met=None)
        found.append(goal)
    return found


def serve_goals(serve: Mapping[str, Any]) -> list[Goal]:
    """Return the goals of one model over HTTP."""
    found: list[Goal] = []
    clients = serve["new_seeds"]
    for name in PEERS:
        ratios = [find(sides, name, "ours_to_it") for sides in clients.values()]
        numbers = [number(ratio["median"]) if ratio else NOT_MEASURED for ratio in ratios]
        shown = ", ".join(numbers) if any(ratios) else NOT_MEASURED
        is_ahead = all(ratio["low"] > 1.0 for ratio in ratios) if all(ratios) else None
        subject = f"images a second relative to {TITLES[name]}, at {', '.join(clients)} clients"
        found.append(Goal(subject, "above 1, also the lower quartile", shown, is_ahead))
    times = find(clients, "16", "flask", "ours_to_it", "median")
    flask = serve["processes"].get("flask")
    start = " (one worker)" if flask and "command" not in flask else ""  # results before commands were recorded
    found.append(at_least(f"images a second relative to {TITLES['flask']}{start}, at 16 clients", times, 10))
    for at, wanted in (("16", 0.70), ("64", 0.80)):
        share = find(clients, at, "ours", "of_limit", "median")
        found.append(at_least(f"images a second at {at} clients, share of the reference", share, wanted))
    lone = find(clients, "1", "ours", "p50_to_limit", "median")
    found.append(at_most("latency of a lone request, relative to the reference", lone, 1.25))
    for name, least in (("nginx", 8_000), ("gateway", 2_500), ("304", 2_500)):
        speed = find(serve, "cached", name, "responses_a_second", "median")
        found.append(at_least(f"requests a second for a cached permanent URL, {CACHED[name]}", speed, least))
    workers = find(serve, "processes", "ours", "memory_mib", "gateway")
    found.append(at_most("memory of a gateway worker", max(workers) if workers else None, 80, " MiB"))
    return found


def largest(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of `serve` with the largest images, or nothing."""
    sizes: dict[str, dict[str, Any]] = results.get("serve", {}).get("sizes", {})
    return {"size": max(sizes, key=int), **sizes[max(sizes, key=int)]} if sizes else {}


@dataclass(frozen=True)
class Cost:
    """One process of Ringo: CPU time of an image, and memory."""

    cpu_ms: float
    memory_mib: float

    @property
    def images_a_core_second(self) -> float:
        """Images in a second of one core."""
        return 1e3 / self.cpu_ms

    @property
    def images_a_euro(self) -> float:
        """Images for one euro at EURO_A_CORE_HOUR."""
        return 3_600 * self.images_a_core_second / EURO_A_CORE_HOUR


def costs(results: Mapping[str, Any]) -> dict[str, dict[str, Cost]]:
    """Return the cost by part and image size, over HTTP at 16 clients and with `paint`."""
    found: dict[str, dict[str, Cost]] = {}

    def add(part: str, size: str, cpu_ms: float, memory_mib: Sequence[float]) -> None:
        found.setdefault(part, {})[size] = Cost(cpu_ms, max(memory_mib))

    speeds = results.get("paint", {}).get("speed", {})
    for size, serve in results.get("serve", {}).get("sizes", {}).items():
        for name, part in (("ours", EMBEDDED), ("genuine", "TensorFlow Serving")):
            cpu_ms = find(serve, "new_seeds", "16", name, "cpu_ms")
            memory_mib = find(serve, "processes", name, "memory_mib")
            if cpu_ms and memory_mib:
                with_paint = find(speeds, size, "memory_mib", "model-server") if name == "ours" else None
                if name == "ours":
                    add("gateway", size, cpu_ms["gateway"]["median"], memory_mib["gateway"])
                add(part, size, cpu_ms["model-server"]["median"], memory_mib["model-server"] + (with_paint or []))
    for size, gateway in dict(found.get("gateway", {})).items():
        model = found[EMBEDDED][size]
        both = [gateway.memory_mib + model.memory_mib]
        add(f"gateway and {EMBEDDED}", size, gateway.cpu_ms + model.cpu_ms, both)
    for size, speed in speeds.items():
        cpu_ms, memory_mib = speed["cpu_ms"], speed["memory_mib"]
        add("batch server", size, cpu_ms["batch"], memory_mib["batch"])
        both = [max(memory_mib["batch"]) + max(memory_mib["model-server"])]
        add(f"batch server and {EMBEDDED}", size, cpu_ms["batch"] + cpu_ms["model-server"], both)
    return found


def plan(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plan's rows, by image size and CDN hit rate."""
    rows = []
    by_part = costs(results)
    for size, gateway in by_part.get("gateway", {}).items():
        model = by_part[EMBEDDED][size]
        at_16 = results["serve"]["sizes"][size]["new_seeds"]["16"]["ours"]
        for hit_rate in HIT_RATES:
            rendered = AIM * (1 - hit_rate)
            gateways, servers = (
                max(MIN_PODS, math.ceil(rendered * cost.cpu_ms / 1e3 / UTILISATION / cores))
                for cost, cores in ((gateway, GATEWAY_CORES), (model, MODEL_SERVER_CORES))
            )
            rows.append(
                {
                    "size": size,
                    "hit_rate": hit_rate,
                    "rendered": rendered,
                    "gateways": gateways,
                    "servers": servers,
                    "gbit_a_second": rendered * at_16["bytes_a_response"]["median"] * 8 / 1e9,
                    "euros_an_hour": (gateways * GATEWAY_CORES + servers * MODEL_SERVER_CORES) * EURO_A_CORE_HOUR,
                }
            )
    return rows


def render(results: Mapping[str, Any], template: str = "benchmarks.md.jinja") -> str:
    """Return the page as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True, lstrip_blocks=True, trim_blocks=True
    )
    environment.filters["number"] = number
    versions: dict[str, str] = {}
    for part in results.values():
        versions |= part["machine"]["versions"]
    text = environment.get_template(template).render(
        r=results,
        best=largest(results),
        missing=[part for part in PARTS if part not in results],
        goals=goals(results),
        sizes=list(dict.fromkeys(size for by_size in costs(results).values() for size in by_size)),
        costs=costs(results),
        plan=plan(results),
        euro=EURO_A_CORE_HOUR,
        utilisation=UTILISATION,
        cores={"gateway": GATEWAY_CORES, "model server": MODEL_SERVER_CORES},
        titles=TITLES,
        cached_titles=CACHED,
        versions=versions,
        number=number,
        find=find,
    )
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def with_sizes(operations: str, results: Mapping[str, Any]) -> str:
    """Return the text of docs/operations.md with the measured sizes."""
    before, _, rest = operations.partition(SIZES_BEGIN)
    return before + SIZES_BEGIN + render(results, "sizes.md.jinja") + SIZES_END + rest.partition(SIZES_END)[2]


def chart(serve: Mapping[str, Any]) -> Figure:
    """Draw speed by clients, latency of one client, and cached speed."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    by_clients, lone, cached = figure.subplots(1, 3)
    clients = serve["new_seeds"]
    names = [name for name in TITLES if name != "session" and any(name in sides for sides in clients.values())]
    colours = dict(zip((name for name in TITLES if name != "session"), COLOURS, strict=True))
    titles = {name: TITLES[name].replace("`", "") for name in names}
    for name in names:
        speeds = {at: sides[name]["responses_a_second"]["median"] for at, sides in clients.items() if name in sides}
        by_clients.plot(
            list(speeds),
            list(speeds.values()),
            "o-" if name != "limit" else "--",
            label=titles[name],
            color=colours[name],
            markersize=3,
        )
    by_clients.set(title="New images a second", xlabel="clients", ylim=0)
    by_clients.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
    by_clients.grid(alpha=0.3)
    latencies = {name: clients["1"][name]["p50_ms"]["median"] for name in names if name in clients["1"]}
    speeds = {
        title: speed
        for name, title in CACHED.items()
        if (speed := find(serve, "cached", name, "responses_a_second", "median"))
    }
    bars(lone, {titles[name]: ms for name, ms in latencies.items()}, [colours[name] for name in latencies])
    lone.set(title="Lone request: median latency, ms")
    bars(cached, speeds, [RINGO] * len(speeds))
    cached.set(title="Cached images a second")
    return figure


def bars(axes: Any, values: Mapping[str, float], colours: Sequence[str]) -> None:
    """Draw `values` as horizontal bars with their numbers, the first on top."""
    drawn = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(drawn, [number(value) for value in values.values()], padding=3)
    axes.margins(x=0.3)
    axes.invert_yaxis()


def write_page(results: Mapping[str, Any], page: Path) -> None:
    """Write `page`, and its charts into the folder of its name.

    Equal results give equal bytes.
    """
    page.write_text(render(results), encoding="utf-8")
    if serve := largest(results):
        folder = page.with_suffix("")
        folder.mkdir(exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "ringo", "font.size": 9}):
            chart(serve).savefig(folder / "serve.svg", metadata={"Date": None})


def main() -> int:
    """Write docs/benchmarks.md and sizes in docs/operations.md; return 1 without results."""
    results = read_results(RESULTS)
    if not results:
        print(f"{RESULTS.name} has no results; run `make bench` first.", file=sys.stderr)
        return 1
    write_page(results, PAGE)
    OPERATIONS.write_text(with_sizes(OPERATIONS.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
