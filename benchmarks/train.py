"""Training speed, beside the same networks in PyTorch: python -m benchmarks.train.

Each training loop is a process of its own that trains a few batches when its turn comes. PyTorch takes part where it
is installed: pip install torch==2.13.0 (a CPU build will do).
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
from training.config import PLAIN_SETTINGS, TrainingConfig

PHOTOS = 2_000  # in memory, 64 x 64 of noise: their content does not affect the time
SETTLING = 3  # batches at the start of a turn that don't count: other processes have used the caches
BATCHES = 15  # batches of a turn that count
ROUNDS = 5
READY_S = 180.0  # for TensorFlow to start and trace the step
WARM_UP = 5  # batches
LOOPS: dict[str, dict[str, Any]] = {  # each with its settings
    "ours": {},
    "ours, not deterministic": {"deterministic": False},
    "ours, refining": {},
    "ours, plain": {"discriminator": "plain", **PLAIN_SETTINGS},
    "PyTorch": {},
}
STEP, ONE_BATCH, FEATURES = "step", "one batch again and again", "frozen features"
# Turns by name: the loop, and its work in that turn.
TURNS = {loop: (loop, STEP) for loop in LOOPS} | {
    "ours, one batch": ("ours", ONE_BATCH),
    "ours, features": ("ours", FEATURES),
    "ours, refining, features": ("ours, refining", FEATURES),
}


class Turns:
    """The turns of one loop, requested by the parent over `connection`.

    Answers are pairs: the seconds of a batch, and those of drawing its data.
    """

    def __init__(self, connection: Connection, config: TrainingConfig, loop: str) -> None:
        self.connection, self.config, self.loop = connection, config, loop
        self.kind = STEP
        self.drawing_s = self.begin = 0.0
        self.batches = -WARM_UP
        self.features_s: Callable[[], float] | None = None  # of a batch

    def after_batch(self) -> bool:
        """Count a batch; between turns, wait; return whether another batch follows."""
        self.batches += 1
        if self.batches == SETTLING:
            self.drawing_s, self.begin = 0.0, time.perf_counter()
        if self.batches == 0:
            self.connection.send("ready")
        elif self.batches == SETTLING + BATCHES:
            elapsed_s = time.perf_counter() - self.begin
            self.connection.send((elapsed_s / BATCHES, self.drawing_s / BATCHES))
        else:
            return True
        self.batches, self.kind = 0, self.connection.recv()
        while self.kind == FEATURES and self.features_s:
            self.connection.send((self.features_s(), 0.0))
            self.kind = self.connection.recv()
        return bool(self.kind)


def train_ours(turns: Turns, pixels: Any) -> None:
    """Train as `python -m training fit` does, but only the steps."""
    import keras

    from training.fit.run import enable_determinism, iterate_batches
    from training.model.gan import build_gan
    from training.model.replicas import distribute_batches

    enable_determinism(turns.config)
    gan = build_gan(turns.config, refining=turns.loop == "ours, refining")
    if turns.config.discriminator == "projected":
        turns.features_s = time_features(gan)

    def timed_batches() -> Iterator[Any]:
        drawn = iterate_batches(pixels, np.arange(len(pixels)), turns.config, 0)
        first = next(drawn)
        while True:
            begin = time.perf_counter()
            batch = first if turns.kind == ONE_BATCH else next(drawn)
            turns.drawing_s += time.perf_counter() - begin
            yield batch

    class EachBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = not turns.after_batch()

    gan.fit(distribute_batches(timed_batches), steps_per_epoch=10**6, shuffle=False, verbose=0, callbacks=[EachBatch()])


def time_features(gan: Any) -> Callable[[], float]:
    """Return a function for the seconds of frozen features in a step.

    These are a forward pass for the photos, a forward and a backward pass for the generated images.
    """
    import tensorflow as tf

    size = gan.config.image_size
    images = tf.random.uniform((gan.config.batch_size, size, size, 3), -1.0, 1.0)

    @tf.function
    def passes(photos: Any, generated: Any) -> Any:
        of_photos = gan.discriminator.mixed_features(photos)
        with tf.GradientTape() as tape:
            tape.watch(generated)
            of_generated = gan.discriminator.mixed_features(generated)
        return of_photos, tape.gradient(of_generated, generated)

    def seconds() -> float:
        for done in range(SETTLING + BATCHES):
            if done == SETTLING:
                begin = time.perf_counter()
            passes(images, images)[1].numpy()
        return (time.perf_counter() - begin) / BATCHES

    return seconds


def chosen_compiler() -> bool:
    """Return whether `fit` would compile with XLA here."""
    from training.fit.machine import detect_machine
    from training.fit.plan import choose_networks

    *_, compiler = choose_networks(PHOTOS, TrainingConfig().image_size, detect_machine())
    return bool(compiler.value)


def run_loop(loop: str, connection: Connection) -> None:
    """Train `loop` in turns until the parent sends an empty one."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    try:
        config = TrainingConfig(jit_compile=chosen_compiler(), steps=10**6, **LOOPS[loop])
        pixels = np.random.default_rng(0).integers(0, 256, (PHOTOS, config.image_size, config.image_size, 3), np.uint8)
        turns = Turns(connection, config, loop)
        if loop == "PyTorch":
            from benchmarks.peers import torch_gan

            torch_gan.fit(config, pixels, turns.after_batch)
        else:
            train_ours(turns, pixels)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def measure(loops: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Return the result of the whole part."""
    config, context = TrainingConfig(), multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    pids: dict[str, list[int]] = {}
    left_out: dict[str, str] = {}
    start_s: dict[str, float] = {}

    def turn(loop: str, kind: str) -> tuple[float, float]:
        with rounds.resumed(pids[loop]):
            connections[loop].send(kind)
            answer: tuple[float, float] | str = connections[loop].recv()
        if isinstance(answer, str):
            raise RuntimeError(f"{loop}: {answer}")
        return answer

    with contextlib.ExitStack() as stack:
        for loop in loops:
            connection, remote = context.Pipe()
            begin = time.monotonic()
            process = context.Process(target=run_loop, args=(loop, remote), daemon=True)
            process.start()
            remote.close()  # so that `recv` raises EOFError if the process dies
            answer = connection.recv() if connection.poll(READY_S) else f"it was not ready within {READY_S:g} s"
            if answer == "ready":
                connections[loop], start_s[loop] = connection, round(time.monotonic() - begin, 1)
                pids[loop] = [process.pid or 0]
                rounds.stop(pids[loop])
                stack.callback(rounds.resume, pids[loop])
            else:
                left_out[loop] = answer
                print(f"{loop} is left out: {answer}", file=sys.stderr)
        turns = {name: partial(turn, loop, kind) for name, (loop, kind) in TURNS.items() if loop in connections}
        measured = rounds.take_turns(repeats, turns)
    for connection in connections.values():
        connection.send("")
    return {
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "batches_a_turn": BATCHES,
        "rounds": repeats,
        "left_out": left_out,
        **summarise(measured, start_s, config.batch_size),
    }


def summarise(
    measured: dict[str, list[tuple[float, float]]], start_s: dict[str, float], batch_size: int
) -> dict[str, Any]:
    """Return speeds by loop, and shares of frozen features and data."""
    seconds = {name: [step_s for step_s, _ in turns] for name, turns in measured.items()}

    def share(name: str, of: str) -> dict[str, float]:
        return rounds.spread([a / b for a, b in zip(seconds[name], seconds[of], strict=True)], digits=3)

    return {
        "sides": {
            loop: {
                "images_a_second": rounds.spread([batch_size / step_s for step_s in seconds[loop]]),
                "start_s": start_s[loop],
                "ours_to_it": rounds.ratio(seconds[loop], seconds["ours"]),
            }
            for loop in start_s
        },
        "features_share": {
            loop: share(name, loop) for name, (loop, kind) in TURNS.items() if kind == FEATURES and name in seconds
        },
        "data_drawn_share": rounds.spread([draw_s / step_s for step_s, draw_s in measured["ours"]], digits=3),
        "data_waiting_share": rounds.spread(
            [1 - b / a for a, b in zip(seconds["ours"], seconds["ours, one batch"], strict=True)], digits=3
        ),
    }


def show(result: dict[str, Any]) -> None:
    """Print a table of images a second, and shares of a step."""
    rounds.row("training", "images/s", "ours to it", "start s")
    for name, side in result["sides"].items():
        times = side["ours_to_it"]
        cells = [f"{side['images_a_second']['median']:.1f}", f"{times['low']:.2f}-{times['high']:.2f}", side["start_s"]]
        rounds.row(name, *cells)
    shares = {f"frozen features, {loop}": share for loop, share in result["features_share"].items()}
    shares |= {"drawing data": result["data_drawn_share"], "waiting for data": result["data_waiting_share"]}
    for name, share in shares.items():
        print(f"{name}: {100 * share['median']:.1f} % of a step")


def main() -> int:
    """Measure, print, and write results/train.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds; not written")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), help="not written if not all")
    arguments = parser.parse_args()
    loops = tuple(dict.fromkeys(("ours", *arguments.loops)))
    result = measure(loops, 3 if arguments.quick else ROUNDS)
    show(result)
    rounds.write("train", result, quick=arguments.quick or set(loops) != set(LOOPS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
