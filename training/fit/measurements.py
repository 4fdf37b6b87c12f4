"""KID and varieties during training: kid.csv, warnings and the best checkpoint."""

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.evaluate.results import BUNDLED_KID_X1000, Coverage
from training.fit.callbacks import Checkpoints, StepCallback, write_summaries
from training.model.checkpoints import save_checkpoint
from training.model.sampling import generate_images
from training.records import COLUMNS, read_batches_done, read_curves, write_atomically

WINNING_LOSS = 0.3  # of the discriminator; at 0 it is never wrong, and the generator learns nothing
REMEDY = (
    "Start a new run with more photos or with --translate-probability 0.9, or stop this one: "
    "best.npz has the best checkpoint so far."
)

# From images to their KID, its deviation and the varieties that they show.
MeasureQuality = Callable[[NDArray[np.uint8]], tuple[float, float, Coverage]]


@dataclass(frozen=True)
class Measurement:
    """A row of kid.csv: KID x1000 of the images at batch `step`."""

    step: int
    kid_x1000: float
    std: float  # standard deviation, also times 1000
    minutes: float  # of training so far, over all resumes


class KeepBest(StepCallback):
    """Measures KID, writes kid.csv, warns, and keeps the best checkpoint in best.npz.

    It generates images of the same seeds every `evaluate_every` batches and after the last. It saves a checkpoint
    first, so a run killed at any moment resumes with the best of all previous batches, and without later rows.
    """

    def __init__(self, folder: Path, first_step: int, measure: MeasureQuality, checkpoints: Checkpoints) -> None:
        super().__init__(first_step)
        self.folder, self.measure_quality, self.checkpoints = folder, measure, checkpoints
        self.discriminator_losses: list[float] = []  # since the last measurement
        self.most_covered = 0  # varieties, since the start of the command
        self.measurements = [row for row in read_measurements(folder / "kid.csv") if row.step <= first_step]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Repeat a measurement that a kill interrupted, maybe before a run without KID."""
        steps = [0, *(row.step for row in self.measurements)]
        if read_batches_done(self.folder / "best.npz") not in steps:
            self.measure()
        elif self.step not in steps:
            self.after_step({})

    def after_step(self, logs: dict[str, float]) -> None:
        """Measure if it is due."""
        self.discriminator_losses += [float(logs["d_loss"])] if logs else []
        if self.step % self.model.config.evaluate_every == 0 or self.step == self.model.config.steps:
            self.checkpoints.save()
            self.measure()

    def measure(self) -> None:
        """Write the best checkpoint if KID improved, then a row of kid.csv."""
        seeds = np.arange(self.model.config.evaluate_count)
        kid, std, coverage = self.measure_quality(generate_images(self.model.ema_generator, seeds))
        minutes = round(self.checkpoints.training_s / 60, 2)
        row = Measurement(self.step, round(1000 * kid, 3), round(1000 * std, 3), minutes)
        best = self.folder / "best.npz"
        kids = {previous.step: previous.kid_x1000 for previous in self.measurements}
        if row.kid_x1000 < kids.get(read_batches_done(best), math.inf):
            save_checkpoint(self.model, best)
        self.measurements.append(row)
        table = [COLUMNS["kid.csv"], *map(astuple, self.measurements)]
        write_atomically(self.folder / "kid.csv", "".join(",".join(map(str, line)) + "\n" for line in table))
        best_row = min(self.measurements, key=lambda measurement: measurement.kid_x1000)
        tqdm.write(
            f"Batch {row.step:,} after {row.minutes:.0f} min: KID x1000 {row.kid_x1000:.1f}; "
            f"best so far {best_row.kid_x1000:.1f} at batch {best_row.step:,}. The bundled model has "
            f"{BUNDLED_KID_X1000:.1f} for its own photos, and photos have 0. "
            f"{coverage.covered} of {len(coverage.photos)} varieties are covered."
        )
        for warning in self.find_faults(coverage.covered, len(coverage.photos)):
            tqdm.write(f"Warning: {warning} {REMEDY}")
        write_summaries(self.folder, row.step, {"kid_x1000": row.kid_x1000, "varieties": coverage.covered})

    def find_faults(self, covered: int, varieties: int) -> Iterator[str]:
        """Yield a sentence for each sign that training goes wrong."""
        loss = float(np.mean(self.discriminator_losses or [math.inf]))
        self.discriminator_losses.clear()
        if loss < WINNING_LOSS:
            yield f"The discriminator wins: its mean loss is {loss:.2f}, less than {WINNING_LOSS}."
        expected = max(self.most_covered, varieties / 2) / 2
        if len(self.measurements) > 1 and covered < expected:  # after the first one, most images are blurs
            yield f"Varieties vanish: the images show {covered} of {varieties}."
        self.most_covered = max(self.most_covered, covered)


def read_measurements(path: Path) -> list[Measurement]:
    """Return the rows of kid.csv, an empty list without a file."""
    return [Measurement(int(step), *figures) for step, *figures in zip(*read_curves(path).values(), strict=True)]
