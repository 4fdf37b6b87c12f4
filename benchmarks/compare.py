"""HTTP speed of two checkouts: python -m benchmarks.compare FOLDER.

FOLDER is another version of this repository in which `make stubs` has run. The results are printed, not written.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks import rounds, servers
from benchmarks.load import NoLoadGenerator, require_wrk

LOADS = {
    "16 clients, new seeds": {"clients": 16},
    "1 client, new seeds": {"clients": 1},
    "16 clients, a cached image": {"clients": 16, "repeat": servers.CHECKED_SEED},
}
FIGURES = ("responses_a_second", "p50_ms", "p99_ms", "failed_share")


def compare(folders: dict[str, Path], model: Path, repeats: int, seconds: float) -> None:
    """Print the figures of both `folders`, and their ratio by round."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        running = {
            name: stack.enter_context(servers.ours(model, Path(scratch, f"{name}.log"), folder))
            for name, folder in folders.items()
        }
        pids = {name: server.pids() for name, server in running.items()}
        for stopped in pids.values():
            rounds.stop(stopped)
        for title, load in LOADS.items():
            settings = {"seconds": seconds, "may_fail": True, **load}
            sides = {name: partial(servers.in_turn, server, pids[name], **settings) for name, server in running.items()}
            loads = rounds.take_turns(repeats, sides)
            rounds.row(title, *FIGURES, width=20)
            figures = {name: [asdict(turn) for turn in turns] for name, turns in loads.items()}
            for name, turns in figures.items():
                spreads = [rounds.spread([turn[figure] for turn in turns], digits=3) for figure in FIGURES]
                rounds.row(name, *(f"{s['median']:g} ({s['low']:g}-{s['high']:g})" for s in spreads), width=20)
            first, second = ([turn["responses_a_second"] for turn in turns] for turns in figures.values())
            print(f"ratio, {len(first)} rounds: {rounds.ratio(first, second)}", flush=True)
        for name, server in running.items():
            print(f"{name}: {server.milestones_s}, memory in MiB {servers.memory_mib(server.pids())}", flush=True)


def main() -> int:
    """Compare, and print; return 1 without wrk."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions, for both")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each load")
    arguments = parser.parse_args()
    try:
        require_wrk()
    except NoLoadGenerator as error:
        print(error, file=sys.stderr)
        return 1
    folders = {"this checkout": servers.ROOT, "other checkout": arguments.other.resolve()}
    compare(folders, arguments.model, arguments.rounds, arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
