"""The model card: origin, data, training and evaluation of a version. It follows Mitchell et al. 2019."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import keras

from training.config import TrainingConfig
from training.data.dataset import PhotosRecord
from training.data.photos import printable
from training.errors import TrainingError
from training.evaluate.results import Evaluation
from training.fit.measurements import Measurement, read_measurements
from training.fit.run import ModelRecord, SourceRecord, read_sources
from training.model import latents, selector
from training.model.checkpoints import TrainedGenerator
from training.model.latents import MAX_SEED
from training.model.selector import CANDIDATES, Selector
from training.records import ComputeRecord, read_record

FRONT_MATTER = "---\nlicense: {}\nlibrary_name: tensorflow\npipeline_tag: unconditional-image-generation\n---"
NOT_EVALUATED = "Not evaluated."
NO_FAULT = "No fault is recorded, but the model may have some."


@dataclass(frozen=True)
class Fault:
    """A known fault in the image of a seed."""

    seed: int
    text: str

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Return the fault of "SEED:TEXT". Raises TrainingError for other texts."""
        seed, _, description = text.partition(":")
        if not re.fullmatch(r"\d{1,19}", seed, re.ASCII) or int(seed) > MAX_SEED or not description.strip():
            raise TrainingError(f"--fault is {text!r:.80}; set it to SEED:TEXT, with a seed from 0 to {MAX_SEED}.")
        return cls(int(seed), description.strip())


@dataclass(frozen=True)
class RunRecord:
    """The records of a run folder."""

    config: TrainingConfig
    steps: int
    photos: PhotosRecord
    measurements: list[Measurement]  # KID of all checkpoints during training
    evaluation: Evaluation | None  # of this checkpoint and selector
    selector: Selector | None
    compute: ComputeRecord
    grown_from: SourceRecord | None
    started_from: ModelRecord | None


def read_run(run: Path, generator: TrainedGenerator) -> RunRecord:
    """Return the records of `run` for the model card. Raises TrainingError if a file is missing or damaged."""
    evaluation_file, evaluation = run / "evaluation.json", None
    if evaluation_file.exists():
        evaluation = read_record(evaluation_file, Evaluation, remedy="run `evaluate` again")
    digest = generator.selector.digest if generator.selector else ""
    is_current = evaluation and (evaluation.batch, evaluation.selector) == (generator.batch, digest)
    return RunRecord(
        config=generator.config,
        steps=generator.batch,
        photos=read_record(run / "photos.json", PhotosRecord),
        measurements=read_measurements(run / "kid.csv"),
        evaluation=evaluation if is_current else None,
        selector=generator.selector,
        compute=read_record(run / "compute.json", ComputeRecord),
        **read_sources(run),
    )


def write_model_card(
    folder: Path, run: RunRecord, *, model: str, licence: str, attribution: str, checks: str, faults: Sequence[Fault]
) -> None:
    """Write `folder`/model_card.md; faults/<seed>.png are the images of `faults`."""
    licence, attribution, size = printable(licence), printable(attribution), run.config.image_size
    skipped = "".join(f"; {count:,} skipped: {reason}" for reason, count in run.photos.skipped.items())
    latent_name = selector.NAME if run.selector else latents.NAME
    held_out = f"; {run.photos.held_out:,} held out of training" if run.photos.held_out else ""
    card = f"""\
{FRONT_MATTER.format(json.dumps(licence, ensure_ascii=False))}

# {model}, version {folder.name}

This model generates {size}x{size} RGB images. It is the moving average of a GAN's generator, exported on
{datetime.now(UTC):%Y-%m-%d} with Keras {keras.__version__}.
The signature `generate` maps seeds to images, `sample` maps seeds to latents by `{latent_name}`, `serving_default` maps
latents to images, and `golden` returns digests of the pixels of a few seeds.

## Data

{run.photos.used:,} photos of {run.photos.files:,} files{skipped}{held_out}.

- Attribution: {attribution}
- Licence of these weights: {licence}

## Training

{_describe_training(run)}

{_format_table({f.name: getattr(run.config, f.name) for f in fields(run.config) if f.metadata["fixed"]})}

## Evaluation

{_format_table(run.evaluation.format_rows()) if run.evaluation else NOT_EVALUATED}

## Known faults

{_format_faults(faults)}

## Checks at export

{checks}
"""
    (folder / "model_card.md").write_text(card, encoding="utf-8")


def _describe_training(run: RunRecord) -> str:
    """Return batches, chosen checkpoint, duration and sources in words."""
    sentences = [f"{run.steps:,} batches of {run.config.batch_size}: {run.steps * run.config.batch_size:,} images."]
    if measurement := next((row for row in run.measurements if row.step == run.steps), None):
        last = run.measurements[-1].step  # config.json has the planned number
        kid = f"KID x1000 {measurement.kid_x1000} ± {measurement.std} against the training photos"
        lowest = min(row.kid_x1000 for row in run.measurements)
        which = "The best" if measurement.kid_x1000 == lowest else "Not the best, but one"
        sentences.append(f"{which} of {len(run.measurements)} checkpoints measured in {last:,} batches: {kid}.")
    sentences.append(f"The run {_describe_duration(run.compute)}.")
    if run.selector:
        sentences.append(
            f"Its selector {run.selector.digest} chooses the latent of a seed among {CANDIDATES} candidates; "
            "KID during the training was measured without it."
        )
    return " ".join([*sentences, *_describe_sources(run, "It")])


def _describe_sources(run: RunRecord | SourceRecord, name: str) -> Iterator[str]:
    """Yield sentences about the run and the model that `run` started from, then about their sources."""
    if model := run.started_from:
        rights = "; ".join(f"{label}: {text}" for label, text in model.rights.items())
        yield f"{name} started from the weights of {model.model} ({rights or 'no licence is stated'})."
    if source := run.grown_from:
        yield (
            f"{name} grew from the run {source.run}: {source.config.image_size} px, "
            f"{source.batch * source.config.batch_size:,} images, "
            f"`--steps {source.config.steps} --refine-from {source.config.refine_from}`. "
            f"That run {_describe_duration(source)}."
        )
        yield from _describe_sources(source, f"The run {source.run}")


def _describe_duration(run: ComputeRecord) -> str:
    hours, minutes = divmod(round(run.training_s / 60), 60)
    return f"took {hours} h {minutes} min, last on {run.machine} with {run.processors} processors ({run.backend})"


def _format_table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| name | value |", "|---|---|", *(_format_row(*row) for row in rows.items())])


def _format_row(*cells: object) -> str:
    return " | ".join(["", *(str(cell).replace("|", r"\|") for cell in cells), ""]).strip()


def _format_faults(faults: Sequence[Fault]) -> str:
    if not faults:
        return NO_FAULT
    rows = (_format_row(f"![seed {f.seed}](faults/{f.seed}.png)", f.seed, printable(f.text)) for f in faults)
    return "\n".join(["| image | seed | fault |", "|---|---|---|", *rows])
