"""Training: images a second against loops as people write them, on the same networks: python -m benchmarks.train.

Each side is a process of its own that trains a few batches when its turn comes. PyTorch takes part where it is
installed beside the peers: pip install torch==2.13.0 (a CPU build will do).
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks import rounds
from training.config import TrainingConfig

PHOTOS = 2_000  # in memory, 64 x 64 of noise: what is on them costs nothing
SETTLING = 3  # batches of a turn that don't count: others have had the caches
BATCHES = 15  # that do
ROUNDS = 7
READY_S = 180.0  # XLA compiles a step in 10 to 30 s
WARM_UP = 5  # batches
OTHER = "ours, XLA switched"  # than `fit` chooses it for this machine
AT_HAND = "ours, one batch repeated"  # the same process with the same batch again and again
SIDES = ("ours", AT_HAND, OTHER, "Keras example", "Keras example, our layers", "PyTorch")


def ours(
    config: Any, pixels: Any, on_batch: Callable[[], bool], spent: list[float], at_hand: Callable[[], bool]
) -> None:
    """Train as `python -m training fit` does, without what happens beside the step; while `at_hand` with one batch."""
    import keras

    from training.fit.run import enable_determinism, iterate_batches
    from training.model.gan import build_gan
    from training.model.replicas import distribute_batches

    enable_determinism(config)
    gan = build_gan(config)

    def timed() -> Iterator[Any]:
        drawn = iterate_batches(pixels, np.arange(len(pixels)), config, 0)
        kept = next(drawn)
        while True:
            begin = time.perf_counter()
            batch = kept if at_hand() else next(drawn)
            spent[0] += time.perf_counter() - begin
            yield batch

    class EachBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if not on_batch():
                self.model.stop_training = True

    gan.fit(distribute_batches(timed), steps_per_epoch=10**6, shuffle=False, verbose=0, callbacks=[EachBatch()])


def process_of(side: str) -> str:
    """Return the name of the process that `side` is measured in."""
    return "ours" if side == AT_HAND else side


def chosen_compiler() -> bool:
    """Return whether `fit` would compile by XLA here."""
    from training.fit.machine import detect_machine
    from training.fit.plan import choose_networks

    *_, compiler = choose_networks(PHOTOS, TrainingConfig().image_size, detect_machine())
    return bool(compiler.value)


def work(name: str, connection: Connection) -> None:
    """Train side `name`; after each turn tell the seconds of a batch and those spent on its data, and wait for more.

    What comes is the side that the next turn is for, or nothing if there is none.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    try:
        chosen = chosen_compiler()
        config = TrainingConfig(jit_compile=not chosen if name == OTHER else chosen, steps=10**6)
        pixels = np.random.default_rng(0).integers(0, 256, (PHOTOS, config.image_size, config.image_size, 3), np.uint8)
        spent, done, begin, side = [0.0], 0, 0.0, name

        def on_batch() -> bool:
            nonlocal done, begin, side
            done += 1
            of_turn = (done - WARM_UP) % (SETTLING + BATCHES)
            if of_turn == SETTLING:
                spent[0], begin = 0.0, time.perf_counter()
            if of_turn or done < WARM_UP:
                return True
            ready = "ready" if done == WARM_UP else ((time.perf_counter() - begin) / BATCHES, spent[0] / BATCHES)
            connection.send(ready)
            side = connection.recv()
            return bool(side)

        match name:
            case "Keras example" | "Keras example, our layers":
                from benchmarks.peers import keras_gan

                keras_gan.fit(config, pixels, on_batch, our_layers=name != "Keras example")
            case "PyTorch":
                from benchmarks.peers import torch_gan

                torch_gan.fit(config, pixels, on_batch)
            case _:
                ours(config, pixels, on_batch, spent, lambda: side == AT_HAND)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def measure(names: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Return the result of the whole part."""
    config, context = TrainingConfig(), multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    pids: dict[str, list[int]] = {}
    left_out: dict[str, str] = {}
    start_s: dict[str, float] = {}

    def turn(side: str) -> tuple[float, float]:
        name = process_of(side)
        with rounds.awake(pids[name]):
            connections[name].send(side)
            told: tuple[float, float] = connections[name].recv()
            return told

    with contextlib.ExitStack() as released:
        for name in dict.fromkeys(map(process_of, names)):
            mine, its = context.Pipe()
            begin = time.monotonic()
            process = context.Process(target=work, args=(name, its), daemon=True)
            process.start()
            said = mine.recv() if mine.poll(READY_S) else f"it was not ready within {READY_S:g} s"
            if said == "ready":
                connections[name], start_s[name] = mine, round(time.monotonic() - begin, 1)
                pids[name] = [process.pid or 0]
                rounds.hold(pids[name])
                released.callback(rounds.release, pids[name])
            else:
                left_out[name] = said
                print(f"{name} is left out: {said}", file=sys.stderr)
        sides = {side: partial(turn, side) for side in names if process_of(side) in connections}
        told = rounds.take_turns(repeats, sides)
    seconds = {name: [step for step, _ in turns] for name, turns in told.items()}
    result: dict[str, Any] = {
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "batches_a_turn": BATCHES,
        "rounds": repeats,
        "left_out": left_out,
        "sides": {
            name: {
                "images_a_second": rounds.spread([config.batch_size / step for step in steps]),
                "start_s": start_s[process_of(name)],
                "ours_to_it": rounds.ratio(steps, seconds["ours"]),
            }
            for name, steps in seconds.items()
        },
    }
    result["data_prepared_share"] = rounds.spread([drawn / step for step, drawn in told["ours"]], digits=3)
    if AT_HAND in seconds:
        shares = [1 - b / a for a, b in zip(seconds["ours"], seconds[AT_HAND], strict=True)]
        result["data_waiting_share"] = rounds.spread(shares, digits=3)
    for connection in connections.values():
        connection.send("")
    return result


def show(result: dict[str, Any]) -> None:
    """Print a table of images a second, and what of a step goes into its data."""
    rounds.row("training", "images/s", "ours to it", "start s")
    for name, told in result["sides"].items():
        speed, of = told["images_a_second"]["median"], told["ours_to_it"]
        rounds.row(name, f"{speed:.1f}", f"{of['median']:.2f} ±{(of['high'] - of['low']) / 2:.2f}", told["start_s"])
    for key in ("data_prepared_share", "data_waiting_share"):
        if key in result:
            print(f"{key.replace('_', ' ')}: {100 * result[key]['median']:.1f} % of a step")


def main() -> int:
    """Measure, print, and write results/train.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds; not written")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="not written if not all")
    arguments = parser.parse_args()
    names = tuple(dict.fromkeys(("ours", *arguments.sides)))
    result = measure(names, 3 if arguments.quick else ROUNDS)
    show(result)
    rounds.write("train", result, quick=arguments.quick or set(names) != set(SIDES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
