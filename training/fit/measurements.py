"""KID during training: kid.csv and the best checkpoint."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.config import TrainingConfig
from training.fit.callbacks import Checkpoints, StepCallback
from training.model.checkpoints import save_checkpoint
from training.model.sampling import generate_images
from training.records import read_curves, write_atomically


@dataclass(frozen=True)
class Measurement:
    """A row of kid.csv: KID x1000 of the images at batch `step`."""

    step: int
    kid_x1000: float
    std: float  # standard deviation, also times 1000
    minutes: float = math.nan  # of training so far, over all resumes


class KeepBest(StepCallback):
    """Measures KID, writes kid.csv and keeps the best checkpoint in best.npz.

    It generates images of the same seeds every `evaluate_every` batches and after the last. Before each measurement it
    saves a checkpoint. So a run killed at any moment resumes with the best of all previous batches, and without rows of
    later batches.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        first_step: int,
        generator: keras.Model,
        measure_kid: Callable[[NDArray[np.uint8]], tuple[float, float]],
        checkpoints: Checkpoints,
    ) -> None:
        super().__init__(first_step)
        self.folder, self.config, self.generator = folder, config, generator
        self.measure_kid, self.checkpoints = measure_kid, checkpoints
        self.measurements = [row for row in read_measurements(folder / "kid.csv") if row.step <= first_step]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Repeat a measurement that a kill interrupted."""
        if self.step > 0 and all(row.step != self.step for row in self.measurements):
            self.after_step({})

    def after_step(self, logs: dict[str, float]) -> None:
        """Measure if it is due."""
        if self.step % self.config.evaluate_every == 0 or self.step == self.config.steps:
            self.checkpoints.save()
            self.measure()

    def measure(self) -> None:
        """Write the best checkpoint if KID improved, then a row of kid.csv."""
        images = generate_images(self.generator, np.arange(self.config.evaluate_count))
        distance, deviation = self.measure_kid(images)
        minutes = round(self.checkpoints.training_s / 60, 2)
        row = Measurement(self.step, round(1000 * distance, 3), round(1000 * deviation, 3), minutes)
        best = self.folder / "best.npz"
        if not best.exists() or all(row.kid_x1000 < previous.kid_x1000 for previous in self.measurements):
            save_checkpoint(self.model, best)
        self.measurements.append(row)
        self.write_table()
        best_row = min(self.measurements, key=lambda measurement: measurement.kid_x1000)
        tqdm.write(
            f"Batch {row.step:,} after {row.minutes:.0f} minutes: KID x1000 {row.kid_x1000:.1f}; "
            f"best so far {best_row.kid_x1000:.1f} at batch {best_row.step:,}. 0 is as good as photos."
        )

    def write_table(self) -> None:
        """Write all measurements to kid.csv."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(f.name for f in fields(Measurement))
        writer.writerows(astuple(row) for row in self.measurements)
        write_atomically(self.folder / "kid.csv", text.getvalue())


def read_measurements(path: Path) -> list[Measurement]:
    """Return the rows of kid.csv, an empty list without a file."""
    rows = zip(*read_curves(path).values(), strict=True)
    return [Measurement(int(step), *figures) for step, *figures in rows]
