"""What happens beside the training step: progress, history, picture grids, checkpoints, a clean end on Ctrl-C."""

import csv
import io
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.config import TrainingConfig
from training.errors import RecordError, TrainingError
from training.fit.plots import animate_grids, grids_in, plot_losses
from training.model.checkpoints import save_checkpoint
from training.model.sampling import generate_images, image_grid
from training.records import read_record, write_record, write_whole

COLUMNS = ("step", "g_loss", "d_loss", "d_real", "d_generated")
GRID_SEEDS = np.arange(64)  # the same 64 in every grid, so that one apple can be followed through the run
MILESTONES = (0, 2500, 5000)  # batches whose grid every run that reaches them has, however rare its grids are


class StepCallback(keras.callbacks.Callback):
    """Knows the number of batches done since the beginning of the run, `step`, over all resumptions."""

    def __init__(self, first_step: int) -> None:
        super().__init__()
        self.step = first_step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count the batch, then let the subclass act."""
        self.step += 1
        self.after_step(logs or {})

    def after_step(self, logs: dict[str, float]) -> None:
        """Act after batch number `step`, whose losses are in `logs`."""

    def bring_back_state(self) -> None:
        """Make the model's variables current: between batches Keras's JAX trainer keeps them to itself."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()


class Progress(StepCallback):
    """A line with batches, time left, images a second and the losses."""

    def __init__(self, config: TrainingConfig, first_step: int) -> None:
        super().__init__(first_step)
        self.config = config
        self.bar: Any = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Open the line."""
        every_s = 1.0 if sys.stderr.isatty() else 60.0  # a container's log keeps every line
        self.bar = tqdm(total=self.config.steps, initial=self.step, unit="batch", mininterval=every_s, desc="fit")

    def after_step(self, logs: dict[str, float]) -> None:
        """Move it on."""
        self.bar.update()
        told = self.bar.format_dict
        rate = told["rate"] or (told["n"] - told["initial"]) / told["elapsed"]  # the first is smooth, but comes late
        watched = {name: f"{value:.3f}" for name, value in logs.items()}
        self.bar.set_postfix({"images/s": f"{rate * self.config.batch_size:.0f}", **watched}, refresh=False)

    def close(self) -> None:
        """Close it, however the training ends: what is said afterwards has a line of its own."""
        if self.bar is not None:
            self.bar.close()


class History(StepCallback):
    """history.csv: the mean of every `log_every` batches. The same goes to TensorBoard where TensorFlow is.

    The first row after a resumption is the mean of the batches since.
    """

    def __init__(self, folder: Path, every: int, first_step: int) -> None:
        super().__init__(first_step)
        self.path, self.every = folder / "history.csv", every
        self.pending: list[dict[str, float]] = []
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:  # a killed run may have written rows past its last checkpoint
                rows = [row for row in csv.DictReader(file) if is_whole(row) and int(row["step"]) <= first_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue())
        self.summaries: Any = None
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self.summaries = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def after_step(self, logs: dict[str, float]) -> None:
        """Write a row every `every` batches.

        Raises TrainingError when a loss is no longer finite: before the checkpoint, so the last good one stays.
        """
        self.pending.append({name: float(logs[name]) for name in COLUMNS[1:]})
        if not np.isfinite(list(self.pending[-1].values())).all():
            raise TrainingError(
                f"The losses of batch {self.step} are not finite: begin again with a smaller --learning-rate; "
                "the last checkpoint is from before."
            )
        if self.step % self.every:
            return
        means = {name: float(np.mean([row[name] for row in self.pending])) for name in COLUMNS[1:]}
        self.pending.clear()
        with self.path.open("a", newline="") as file:
            row = {"step": str(self.step), **{name: f"{value:.6g}" for name, value in means.items()}}
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        if self.summaries is not None:
            import tensorflow as tf

            with self.summaries.as_default(step=self.step):
                for name, value in means.items():
                    tf.summary.scalar(name, value)


def is_whole(row: dict[str, str]) -> bool:
    """Return whether every column of a row of history.csv holds a number: a full disk tears the last one."""
    try:
        return len([float(row[name]) for name in COLUMNS]) == len(row)
    except (KeyError, TypeError, ValueError):
        return False


class Grids(StepCallback):
    """grids/<batch>.png: the same 64 seeds at MILESTONES, every `every` batches and the end.

    losses.png is drawn beside; progress.gif at the end, and whenever the number of grids has doubled: so it costs a
    run of any length a few animations.
    """

    def __init__(self, folder: Path, every: int, first_step: int, generator: keras.Model) -> None:
        super().__init__(first_step)
        self.folder, self.every, self.generator = folder, every, generator
        self.grids = folder / "grids"
        self.grids.mkdir(exist_ok=True)
        for batch, path in grids_in(self.grids):
            if batch > first_step:  # a killed run may have drawn past its last checkpoint
                path.unlink()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Show the untrained generator, or what a kill between checkpoint and grid has left out."""
        self.draw_if_due()

    def after_step(self, logs: dict[str, float]) -> None:
        """Draw when it is time."""
        self.draw_if_due()
        number, rest = divmod(self.step, self.every)
        if rest == 0 and number.bit_count() == 1:
            self.animate()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Show where the training ended, and how it came there."""
        self.draw()
        self.animate()

    def draw_if_due(self) -> None:
        """Draw if this batch is to have a grid."""
        if self.step % self.every == 0 or self.step in MILESTONES:
            self.draw()

    def draw(self) -> None:
        """Paint the grid and the losses of the moment, once."""
        path = self.grids / f"{self.step:07d}.png"
        if path.exists():
            return
        self.bring_back_state()
        file = io.BytesIO()
        image_grid(generate_images(self.generator, GRID_SEEDS), columns=8).save(file, "PNG")
        write_whole(path, file.getvalue())
        plot_losses(self.folder / "history.csv", self.folder / "losses.png")

    def animate(self) -> None:
        """Join the grids so far."""
        animate_grids(self.grids, self.folder / "progress.gif", keep=MILESTONES)


class Checkpoints(StepCallback):
    """checkpoint.npz, every `every_s` seconds and at the end; compute.json says how long it took to come there."""

    def __init__(self, folder: Path, every_s: float, first_step: int) -> None:
        super().__init__(first_step)
        self.path, self.every_s = folder / "checkpoint.npz", every_s
        self.compute = folder / "compute.json"
        self.spent_s = read_record(self.compute)["training_s"] if first_step > 0 and self.compute.exists() else 0.0
        self.saved_at_s = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begin to count the time."""
        self.saved_at_s = time.monotonic()

    def after_step(self, logs: dict[str, float]) -> None:
        """Save when it is time."""
        if time.monotonic() - self.saved_at_s >= self.every_s:
            self.save()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Save where the training ended."""
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        self.bring_back_state()
        save_checkpoint(self.model, self.path)
        now_s = time.monotonic()
        self.spent_s, self.saved_at_s = self.spent_s + now_s - self.saved_at_s, now_s
        record = {
            "training_s": round(self.spent_s, 3),
            "backend": keras.backend.backend(),
            "machine": platform.machine(),
            "processors": os.cpu_count(),
        }
        write_record(self.compute, record)


@dataclass(frozen=True)
class Measurement:
    """A row of kid.csv: KID of the images at batch `step`, and its standard deviation, both times 1000."""

    step: int
    kid_x1000: float
    std: float
    minutes: float  # of training before it, over all resumptions


class KeepBest(StepCallback):
    """best.npz: the checkpoint whose pictures had the lowest KID; kid.csv: what was measured, and when.

    The same seeds are painted every `evaluate_every` batches and after the last. Before a batch is measured it becomes
    the last checkpoint: so a run killed at any moment resumes with the best of all batches before, and with no row of
    a batch that is still to come.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        first_step: int,
        generator: keras.Model,
        judge: Callable[[NDArray[np.uint8]], tuple[float, float]],
        checkpoints: Checkpoints,
    ) -> None:
        super().__init__(first_step)
        self.folder, self.config, self.generator = folder, config, generator
        self.judge, self.checkpoints = judge, checkpoints
        self.measured = [row for row in read_measurements(folder / "kid.csv") if row.step <= first_step]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Measure what was saved to be measured, if the run was killed at that."""
        if self.step > 0 and all(row.step != self.step for row in self.measured):
            self.after_step({})

    def after_step(self, logs: dict[str, float]) -> None:
        """Measure when it is time."""
        if self.step % self.config.evaluate_every == 0 or self.step == self.config.steps:
            self.checkpoints.save()
            self.measure()

    def measure(self) -> None:
        """Write a row, and before it the checkpoint, if no former one was as good."""
        distance, deviation = self.judge(generate_images(self.generator, np.arange(self.config.evaluate_count)))
        minutes = round(self.checkpoints.spent_s / 60, 2)
        row = Measurement(self.step, round(1000 * distance, 3), round(1000 * deviation, 3), minutes)
        best = self.folder / "best.npz"
        if not best.exists() or all(row.kid_x1000 < former.kid_x1000 for former in self.measured):
            save_checkpoint(self.model, best)
        self.measured.append(row)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(f.name for f in fields(Measurement))
        writer.writerows(astuple(row) for row in self.measured)
        write_whole(self.folder / "kid.csv", text.getvalue())
        best_so_far = min(self.measured, key=lambda measurement: measurement.kid_x1000)
        tqdm.write(
            f"Batch {row.step:,} after {row.minutes:.0f} minutes: KID x1000 {row.kid_x1000:.1f}; "
            f"best so far {best_so_far.kid_x1000:.1f} at batch {best_so_far.step:,}. 0 is as good as photos."
        )


def read_measurements(path: Path) -> list[Measurement]:
    """Return the rows of kid.csv, none if there is no such file. Raises RecordError if it is damaged."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return [
                Measurement(
                    int(row["step"]), float(row["kid_x1000"]), float(row["std"]), float(row.get("minutes", "nan"))
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from error


class StopOnSignal(keras.callbacks.Callback):
    """The first Ctrl-C or SIGTERM ends the training after the batch in hand; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals for the time of a `with` block, however it ends."""
        former = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def receive(self, number: int, frame: Any) -> None:
        """Note the signal; the batch in hand is the last."""
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: stopping after this batch.", file=sys.stderr, flush=True)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stop if a signal came."""
        if self.received is not None:
            self.model.stop_training = True
