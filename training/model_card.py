"""The model card: what a version is, what it was made of, and how good it is (Mitchell et al. 2019)."""

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import keras

from training.gan import GAN
from training.latents import NAME


@dataclass(frozen=True)
class ExportChecks:
    """What was measured on the exported model before it was let out."""

    largest_difference: int  # to the Keras generator, of 255
    batch_sizes: int  # every size from 1 to this gives the pixels of size 1
    seeds: int  # random ones, over which both were measured


def write_model_card(
    folder: Path, run: Path, gan: GAN, *, model_name: str, licence: str, attribution: str, checks: ExportChecks
) -> None:
    """Write `folder`/model_card.md about `run`, whose evaluation.json, where there is one, is quoted."""
    config, steps = gan.config, int(gan.optimizer.iterations)
    photos = json.loads((run / "photos.json").read_text(encoding="utf-8"))
    skipped = "".join(f"; {count:,} skipped: {reason}" for reason, count in photos["skipped"].items())
    evaluation = run / "evaluation.json"
    figures = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.exists() else {}
    card = f"""\
---
license: {licence}
library_name: tensorflow
pipeline_tag: unconditional-image-generation
---

# {model_name}, version {folder.name}

A generator of {config.image_size}x{config.image_size} RGB pictures: the moving average of a GAN's generator, made on
{datetime.now(UTC):%Y-%m-%d} with Keras {keras.__version__}.
Seeds become latents by `{NAME}`; signatures are `generate`, `serving_default` and `sample`.

## Data

{photos["used"]:,} photos of {photos["files"]:,} files{skipped}.

- Attribution: {attribution}
- Licence of these weights: {licence}

## Training

{steps:,} batches of {config.batch_size}: {steps * config.batch_size:,} pictures.

{_table({f.name: getattr(config, f.name) for f in fields(config) if f.metadata["fixed"]})}

## Evaluation

{_table(figures) if figures else "Not evaluated."}

## Checks at export

- The fused generator differs from the Keras one by at most {checks.largest_difference}/255 ({checks.seeds} seeds).
- Every batch size from 1 to {checks.batch_sizes} gives the pixels of batch size 1 ({checks.seeds} seeds).
"""
    (folder / "model_card.md").write_text(card, encoding="utf-8")


def _table(rows: dict[str, object]) -> str:
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
