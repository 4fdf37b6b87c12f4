"""Callbacks of training: progress, history, image grids, checkpoints and signals."""

import platform
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from tqdm import tqdm

from training.config import TrainingConfig
from training.errors import TrainingError
from training.evaluate.plots import draw_losses
from training.fit.machine import detect_machine
from training.fit.plots import MILESTONES, animate_grids, list_grids
from training.model.checkpoints import save_checkpoint
from training.model.sampling import generate_images, image_grid, write_image
from training.records import COLUMNS, ComputeRecord, read_curves, read_record, write_atomically, write_record
from training.terminal import progress_interval_s

_, *LOSSES = COLUMNS["history.csv"]
GRID_SEEDS = np.arange(64)  # the same in every grid, so the images of a seed can be compared over the run


class StepCallback(keras.callbacks.Callback):
    """A callback that counts batches in `step`, over all resumes."""

    def __init__(self, first_step: int) -> None:
        super().__init__()
        self.step = first_step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count the batch, then call `after_step`."""
        self.step += 1
        self.after_step(logs or {})

    def after_step(self, logs: dict[str, float]) -> None:
        """Handle the end of batch `step`; `logs` has its losses."""

    def sync_variables(self) -> None:
        """Update the model's variables, which Keras's JAX trainer delays."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()


class Progress(StepCallback):
    """A progress line with batches, remaining time, images per second and losses."""

    def __init__(self, config: TrainingConfig, first_step: int) -> None:
        super().__init__(first_step)
        self.batch_size = config.batch_size
        every_s = progress_interval_s()
        self.bar = tqdm(total=config.steps, initial=first_step, unit="batch", mininterval=every_s, desc="fit: training")

    def after_step(self, logs: dict[str, float]) -> None:
        """Update the progress line."""
        self.bar.update()
        if self.bar.disable:  # by TQDM_DISABLE
            return
        status = self.bar.format_dict
        rate = status["rate"] or (status["n"] - status["initial"]) / status["elapsed"]  # tqdm's rate is None at first
        losses = {name: f"{value:.3f}" for name, value in logs.items()}
        self.bar.set_postfix({"images/s": f"{rate * self.batch_size:.0f}", **losses}, refresh=False)


class History(StepCallback):
    """Writes mean losses of `every` batches to history.csv and TensorBoard."""

    def __init__(self, folder: Path, every: int, first_step: int) -> None:
        super().__init__(first_step)
        self.folder, self.path, self.every = folder, folder / "history.csv", every
        self.pending: list[list[float]] = []
        rows = zip(*read_curves(self.path).values(), strict=True)
        # A killed run may have rows after its last checkpoint.
        lines = [",".join(COLUMNS["history.csv"]), *(format_row(*row) for row in rows if row[0] <= first_step)]
        write_atomically(self.path, "\n".join(lines) + "\n")

    def after_step(self, logs: dict[str, float]) -> None:
        """Write a row if it is due. Raises TrainingError, before the checkpoint, if a loss is not finite."""
        self.pending.append([float(logs[name]) for name in LOSSES])
        if not np.isfinite(self.pending[-1]).all():
            raise TrainingError(
                f"The losses of batch {self.step} are not finite; start a new run with a smaller --learning-rate. "
                "The last checkpoint is from an earlier batch."
            )
        if self.step % self.every:
            return
        means = np.mean(self.pending, axis=0)
        self.pending.clear()
        with self.path.open("a") as file:
            file.write(format_row(self.step, *means) + "\n")
        write_summaries(self.folder, self.step, dict(zip(LOSSES, means, strict=True)))


@cache
def open_tensorboard(run: Path) -> Any:
    """Return the run's only writer: TensorBoard follows one file at a time."""
    import tensorflow as tf

    return tf.summary.create_file_writer(str(run / "tensorboard"))


def write_summaries(
    run: Path, step: int, scalars: Mapping[str, float], images: Mapping[str, Image.Image] | None = None
) -> None:
    """Write values and images of batch `step` for TensorBoard, under TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    with suppress(tf.errors.OpError):  # a full disk: the files beside it have the same values, and their errors name it
        writer = open_tensorboard(run)
        with writer.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
            for name, image in (images or {}).items():
                tf.summary.image(name, np.asarray(image)[None])
        writer.flush()


def format_row(step: float, *losses: float) -> str:
    """Return a row of history.csv."""
    return ",".join([f"{step:.0f}", *(f"{loss:.6g}" for loss in losses)])


class Grids(StepCallback):
    """Writes grids/<batch>.png: images of the same 64 seeds.

    It draws a grid at MILESTONES, every `every` batches and at the end, together with losses.png. It renders
    progress.gif at the end and whenever the number of grids doubles, so even a long run renders few animations.
    """

    def __init__(self, folder: Path, every: int, first_step: int, generator: keras.Model) -> None:
        super().__init__(first_step)
        self.folder, self.every, self.generator = folder, every, generator
        self.grids = folder / "grids"
        self.grids.mkdir(exist_ok=True)
        for batch, path in list_grids(self.grids):
            if batch > first_step:  # a killed run may have grids after its last checkpoint
                path.unlink()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Draw the grid of the first batch, unless it exists."""
        self.after_step({})

    def after_step(self, logs: dict[str, float]) -> None:
        """Draw the grid and the animation if they are due."""
        if self.step % self.every == 0 or self.step in MILESTONES:
            self.draw()
        number, remainder = divmod(self.step, self.every)
        if remainder == 0 and number.bit_count() == 1:
            animate_grids(self.folder)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Draw the last grid and the animation."""
        self.draw()
        animate_grids(self.folder)

    def draw(self) -> None:
        """Draw the current grid and the losses, unless the grid exists."""
        path = self.grids / f"{self.step:07d}.png"
        if path.exists():
            return
        self.sync_variables()
        grid = image_grid(generate_images(self.generator, GRID_SEEDS), columns=8)
        write_image(path, grid)
        write_summaries(self.folder, self.step, {}, {"generated": grid})
        if curves := read_curves(self.folder / "history.csv"):
            draw_losses(curves).savefig(self.folder / "losses.png", dpi=110)


class Checkpoints(StepCallback):
    """Writes checkpoint.npz every `interval_s` seconds and at the end. compute.json gets the training time so far."""

    def __init__(self, folder: Path, interval_s: float, first_step: int) -> None:
        super().__init__(first_step)
        self.path, self.interval_s = folder / "checkpoint.npz", interval_s
        self.compute, self.machine = folder / "compute.json", detect_machine()
        self.training_s = 0.0
        if first_step > 0 and self.compute.exists():
            self.training_s = read_record(self.compute, ComputeRecord).training_s
        self.saved_at_s = time.monotonic()

    def after_step(self, logs: dict[str, float]) -> None:
        """Save the checkpoint if it is due."""
        if time.monotonic() - self.saved_at_s >= self.interval_s:
            self.save()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Save the last checkpoint."""
        self.save()

    def save(self) -> None:
        """Write checkpoint.npz and compute.json."""
        self.sync_variables()
        now_s = time.monotonic()
        self.training_s, self.saved_at_s = self.training_s + now_s - self.saved_at_s, now_s
        devices = f"{self.machine.gpu}, {platform.machine()}" if self.machine.gpu else platform.machine()
        record = ComputeRecord(round(self.training_s, 6), self.machine.backend, devices, self.machine.cores)
        write_record(self.compute, asdict(record))
        save_checkpoint(self.model, self.path)  # last: a kill leaves no checkpoint without compute.json


class StopOnSignal(keras.callbacks.Callback):
    """Stops training after the current batch on Ctrl-C or SIGTERM. A second signal stops it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None

    def on_signal(self, number: int, frame: Any) -> None:
        """Record the first signal; raise KeyboardInterrupt on the second."""
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: stopping after this batch.", file=sys.stderr, flush=True)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stop training if a signal arrived."""
        if self.received is not None:
            self.model.stop_training = True
