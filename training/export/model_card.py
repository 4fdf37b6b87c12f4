"""The model card: what a version is, what it was made of, and how good it is (Mitchell et al. 2019)."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras

from training.config import TrainingConfig
from training.errors import ExportError
from training.evaluate.results import Evaluation, read_evaluation
from training.fit.measurements import Measurement, read_measurements
from training.model.checkpoints import TrainedGenerator
from training.model.latents import MAX_SEED, NAME
from training.records import read_record


@dataclass(frozen=True)
class ExportChecks:
    """What was measured on the exported model before it was let out."""

    largest_difference: int  # to the Keras generator, of 255
    batch_sizes: int  # every size from 1 to this gives the pixels of size 1
    seeds: int  # random ones, over which both were measured
    row_by_row: bool  # whether the graph paints a batch one row at a time
    threads: str  # to an operation of TensorFlow while measuring


@dataclass(frozen=True)
class Fault:
    """What is wrong with the image of a seed, for readers who decide whether to use the model."""

    seed: int
    text: str

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read "SEED: what is wrong". Raises ExportError if it is something else."""
        seed, _, words = text.partition(":")
        if not (seed.isascii() and seed.isdigit()) or int(seed) > MAX_SEED or not words.strip():
            raise ExportError(
                f"--fault is {text!r}: allowed is SEED:TEXT, a seed from 0 to {MAX_SEED} and what is wrong with it."
            )
        return cls(int(seed), words.strip())


@dataclass(frozen=True)
class RunRecord:
    """What a run folder knows of itself."""

    config: TrainingConfig
    steps: int
    photos: dict[str, Any]
    measured: Measurement | None  # the KID of this checkpoint while it was trained
    measurements: list[Measurement]  # of all checkpoints
    evaluation: Evaluation | None  # of this checkpoint
    compute: dict[str, Any]  # minutes and machine
    source: dict[str, Any]  # of the run that this one grew from; empty if it began from scratch


def read_run(run: Path, generator: TrainedGenerator) -> RunRecord:
    """Return what the card will say of `run`. Raises RecordError if one of its files is missing or damaged."""
    steps, measurements = generator.batch, read_measurements(run / "kid.csv")
    evaluation = read_evaluation(run / "evaluation.json") if (run / "evaluation.json").exists() else None
    return RunRecord(
        config=generator.config,
        steps=steps,
        photos=read_record(run / "photos.json"),
        measured=next((row for row in measurements if row.step == steps), None),
        measurements=measurements,
        evaluation=evaluation if evaluation and evaluation.batch == steps else None,
        compute=read_record(run / "compute.json") if (run / "compute.json").exists() else {},
        source=read_record(run / "grown_from.json") if (run / "grown_from.json").exists() else {},
    )


def write_model_card(
    folder: Path,
    run: RunRecord,
    *,
    model_name: str,
    licence: str,
    attribution: str,
    checks: ExportChecks,
    faults: Sequence[Fault],
) -> None:
    """Write `folder`/model_card.md. The images of `faults` are expected as faults/<seed>.png beside it."""
    config, photos = run.config, run.photos
    skipped = "".join(f"; {count:,} skipped: {reason}" for reason, count in photos["skipped"].items())
    held_out = f"; {photos['held_out']:,} held out of training" if photos.get("held_out") else ""
    rows = "one row at a time" if checks.row_by_row else "all rows at once, odd batches with one more"
    card = f"""\
---
license: {licence}
library_name: tensorflow
pipeline_tag: unconditional-image-generation
---

# {model_name}, version {folder.name}

A generator of {config.image_size}x{config.image_size} RGB images: the moving average of a GAN's generator, exported on
{datetime.now(UTC):%Y-%m-%d} with Keras {keras.__version__}.
`{NAME}` maps a seed to a latent. The signatures are `generate`, `serving_default`, `sample`, and `golden`, which
returns the digests of a few seeds' pixels.

## Data

{photos["used"]:,} photos of {photos["files"]:,} files{skipped}{held_out}.

- Attribution: {attribution}
- Licence of these weights: {licence}

## Training

{_training(run)}

{_table({f.name: getattr(config, f.name) for f in fields(config) if f.metadata["fixed"]})}

## Evaluation

{_table(run.evaluation.format_rows()) if run.evaluation else "Not evaluated."}

## Known faults

{_faults(faults)}

## Checks at export

- The fused generator differs from the Keras one by at most {checks.largest_difference}/255 ({checks.seeds} seeds).
- Every batch size from 1 to {checks.batch_sizes} gives the floats of batch size 1, bit for bit ({checks.seeds} seeds):
  {rows}. Measured on {platform.machine()} with {checks.threads} threads to an operation: give a model server as many.
"""
    (folder / "model_card.md").write_text(card, encoding="utf-8")


def _training(run: RunRecord) -> str:
    """Return how long the run took, how its checkpoint was chosen, and from which run it grew."""
    sentences = [
        f"{run.steps:,} batches of {run.config.batch_size}: {run.steps * run.config.batch_size:,} images.",
        *_chosen(run),
        *_duration(run.compute, "The run"),
    ]
    if run.source:
        config = run.source["config"]
        images = run.source["batch"] * config["batch_size"]
        sentences += [
            f"It grew from the run {run.source['run']}: {config['image_size']} px, {images:,} images, "
            f"`--steps {config['steps']} --refine-from {config['refine_from']}`.",
            *_duration(run.source, "That run"),
        ]
    return " ".join(sentences)


def _chosen(run: RunRecord) -> list[str]:
    if not run.measured:
        return []
    last = run.measurements[-1].step  # config.json has the planned number
    kid = f"KID x1000 {run.measured.kid_x1000} ± {run.measured.std} to the training photos"
    return [f"The best of {len(run.measurements)} checkpoints measured in {last:,} batches: {kid}."]


def _duration(compute: Mapping[str, Any], subject: str) -> list[str]:
    if "training_s" not in compute:
        return []
    hours, minutes = divmod(round(compute["training_s"] / 60), 60)
    machine = f"{compute['machine']} with {compute['processors']} processors"
    return [f"{subject} took {hours} h {minutes} min on {machine} ({compute['backend']})."]


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _faults(faults: Sequence[Fault]) -> str:
    if not faults:
        return "None are noted, which does not mean that there are none."
    rows = (f"| ![seed {fault.seed}](faults/{fault.seed}.png) | {fault.seed} | {fault.text} |" for fault in faults)
    return "\n".join(["| image | seed | what is wrong |", "|---|---|---|", *rows])
