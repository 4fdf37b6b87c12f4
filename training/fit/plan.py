"""The plan of a run: settings chosen from photos and machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from training.config import IMAGE_SIZES, PLAIN_SETTINGS, TrainingConfig

CHOSEN_FIELDS = (
    "image_size",
    "memory_limit_mib",
    "discriminator",
    *PLAIN_SETTINGS,
    "preset",
    "batch_size",
    "jit_compile",
    "steps",
    "refine_from",
    "refining_learning_rate",
)  # in the order of the choices

# On a CPU an image of 128 px costs 2 to 4 times one of 64 px, and 256 px 10 times; a GPU is that much faster.
MAX_IMAGE_SIZE = {"cpu": 64, "gpu": 128}

# Fewest and most training images: with fewer, nothing is recognisable yet; with more, KID no longer falls.
TRAINING_IMAGES = {"cpu": (96_000, 192_000), "gpu": (200_000, 1_000_000)}
EPOCHS = 32  # between those limits; more epochs memorise the photos
PLAIN_TRAINING_IMAGES = {"cpu": (100_000, 500_000), "gpu": (200_000, 2_000_000)}
PLAIN_EPOCHS = 300
REFINING_SHARE = 3 / 4  # of the images of a run: 144,000 of 192,000
REFINING_COST = 2.0  # of a batch, in batches of the first stage: 286 and 145 ms with AVX-512, 443 and 216 ms with AVX2
GROWN_SHARE = 1 / 2  # of the images of a new run, for a grown one
MODEL_SHARE = 1 / 5  # of them, for a run that starts from an exported model

# Training images and KID x1000, measured with 7,180 photos of apples on white and these settings (LOG.md).
# Only the last one is with fixed statistics while refining, so the others are rather too high.
EXPECTED_KID = ((16_000, 25.2), (48_000, 12.0), (64_000, 6.4), (128_000, 4.5), (192_000, 2.5))
MEASURED: dict[str, Any] = {"image_size": 64, "preset": "cpu", "learning_rate": 5e-4, "refining_learning_rate": 2.5e-4}
EXPECTED_KID_PLAIN = ((60_000, 137.0), (120_000, 65.0), (312_000, 23.6))

MAX_HOURS = 10  # one night; --steps overrides it


@dataclass(frozen=True)
class Machine:
    """The devices and memory of a machine."""

    backend: str  # of Keras: tensorflow or jax
    gpu: str | None  # name of the first GPU
    cores: int
    memory_mib: int

    @property
    def kind(self) -> str:
        """The preset, and the key of the tables above: cpu or gpu."""
        return "gpu" if self.gpu else "cpu"

    def __str__(self) -> str:
        return f"{self.cores} CPU cores, {self.memory_mib / 1024:.0f} GiB of memory, {self.gpu or 'no GPU'}"


@dataclass(frozen=True)
class Choice:
    """A field of the configuration, its value and the reason."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """The choices for a run; `flags` of the command line override them."""

    flags: Mapping[str, Any]
    choices: tuple[Choice, ...] = ()

    def with_choices(self, *choices: Choice) -> Plan:
        """Return the plan extended by `choices`, with the values of flags."""
        flags = self.flags
        final = (Choice(c.name, flags[c.name], "from the command line") if c.name in flags else c for c in choices)
        return Plan(flags, (*self.choices, *final))

    @property
    def config(self) -> TrainingConfig:
        """The configuration: flags, else choices, else defaults."""
        return TrainingConfig(**{choice.name: choice.value for choice in self.choices} | dict(self.flags))

    def format_table(self) -> str:
        """Return one line per choice, without a final newline."""
        rows = [(c.name, f"{c.value:,}" if type(c.value) is int else str(c.value), c.reason) for c in self.choices]
        name_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"  {name:<{name_width}}  {value:<{value_width}}  {reason}" for name, value, reason in rows)


@dataclass(frozen=True)
class Start:
    """The generator that a run starts from: a run's or a model's."""

    config: TrainingConfig
    is_model: bool


def choose_image_size(sides: Sequence[int], machine: Machine, start: Start | None = None) -> tuple[Choice, Choice]:
    """Choose the image size, and the memory for photos. `sides` are the shorter sides of the photos, in pixels."""
    median, largest = int(statistics.median(sides)), MAX_IMAGE_SIZE[machine.kind]
    size = max((s for s in IMAGE_SIZES if s <= min(median, largest)), default=IMAGE_SIZES[0])
    reason = f"the median photo has {median} px"
    if start and start.is_model:
        size, reason = start.config.image_size, "that of the model to start from"
    elif start:
        source_size = start.config.image_size
        size = min(2 * source_size, IMAGE_SIZES[-1])
        reason = f"{'twice ' if size > source_size else ''}the {source_size} px of the source run"
    elif median >= 2 * largest:
        reason += f"; a {machine.kind.upper()} is fast enough for {largest} px"
    return (
        Choice("image_size", size, reason),
        Choice("memory_limit_mib", min(2048, machine.memory_mib // 8), "decoded photos beyond this stay on disk"),
    )


def choose_discriminator(name: str) -> tuple[Choice, ...]:
    """Return the discriminator `name` and the settings that depend on it."""
    if name == "plain":
        return (
            Choice("discriminator", name, "learns from the photos alone"),
            *(Choice(field, value, "for a plain discriminator") for field, value in PLAIN_SETTINGS.items()),
        )
    return (Choice("discriminator", name, "ImageNet features: 10 times faster than the plain one"),)


def choose_networks(photos: int, image_size: int, machine: Machine, start: Start | None = None) -> tuple[Choice, ...]:
    """Choose networks, batch size and compiler, not by measurements: losses would vary."""
    if machine.gpu:
        preset = Choice("preset", "gpu", "a GPU can train wide networks")
        batch_size, reason = (64, "keeps a GPU busy") if image_size <= 128 else (32, "fits a GPU's memory")
    else:
        preset = Choice("preset", "cpu", "wide networks need a GPU")
        batch_size, reason = (16, "learns most per image") if machine.cores < 8 else (32, "keeps the cores busy")
    if start:
        preset = Choice("preset", start.config.preset, "that of the generator to start from")
    while 2 * batch_size > photos:
        batch_size, reason = batch_size // 2, f"two batches per epoch of {photos} photos"
    if machine.backend == "tensorflow" and machine.gpu is None:
        compiler = Choice("jit_compile", False, "TensorFlow's own CPU kernels are faster than XLA's")
    else:
        compiler = Choice("jit_compile", True, f"XLA is faster with {machine.backend} on a {machine.kind.upper()}")
    return preset, Choice("batch_size", batch_size, reason), compiler


def mean_step_s(step_s: float, first_stage_share: float) -> float:
    """Return the mean seconds of a batch, given those of a first."""
    if first_stage_share == 0.0:  # the first batches refine already
        return step_s
    return step_s * (first_stage_share + (1.0 - first_stage_share) * REFINING_COST)


def choose_length(
    photos: int, config: TrainingConfig, step_s: float | None, machine: Machine, start: Start | None = None
) -> Choice:
    """Choose the number of batches. `step_s` is the time of the first ones, None if not measured."""
    plain = config.discriminator == "plain"
    low, high = (PLAIN_TRAINING_IMAGES if plain else TRAINING_IMAGES)[machine.kind]
    images = min(max((PLAIN_EPOCHS if plain else EPOCHS) * photos, low), high)
    if start:
        images = round(images * (MODEL_SHARE if start.is_model else GROWN_SHARE))
    affordable = float(images)
    if step_s:
        first_stage_share = 1.0 if plain else 0.0 if start or config.refine_from == 0 else 1.0 - REFINING_SHARE
        affordable = MAX_HOURS * 3600 / mean_step_s(step_s, first_stage_share) * config.batch_size
    if affordable < images:
        reason = f"the most in {MAX_HOURS} hours; {images:,} images would be better"
    else:
        share = ", a fifth of those without --from" if start and start.is_model else ""
        reason = f"{images:,} images{share}, {images / photos:.0f} epochs of the photos"
    return Choice("steps", max(1, round(min(images, affordable) / config.batch_size)), reason)


def choose_refinement(config: TrainingConfig, start: Start | None) -> tuple[Choice, ...]:
    """Choose start and learning rate of the refining stage. A run with a source refines from its start."""
    if config.discriminator == "plain":
        return ()
    if start is None:
        first_refining_step = round(config.steps * (1.0 - REFINING_SHARE))
        return (Choice("refine_from", first_refining_step, "the last batches refine, at 128 px or more"),)
    first = Choice("refine_from", 0, "the generator to start from is past the first stage")
    if start.config.image_size == config.image_size:
        return (first,)
    return (first, Choice("refining_learning_rate", config.learning_rate, "new layers start from random weights"))


def expected_kid(config: TrainingConfig) -> str:
    """Return the KID x1000 to expect for apples; nothing for other sizes, presets, rates, stages or lengths."""
    plain, count = config.discriminator == "plain", config.steps * config.batch_size
    images, kids = zip(*(EXPECTED_KID_PLAIN if plain else EXPECTED_KID), strict=True)
    other: dict[str, Any] = PLAIN_SETTINGS if plain else {"refine_from": round(config.steps * (1.0 - REFINING_SHARE))}
    if replace(config, **MEASURED, **other) != config or not images[0] <= count <= images[-1]:
        return ""
    kid = float(np.exp(np.interp(np.log(count), np.log(images), np.log(kids))))
    return f"{kid:.1f}" if kid < 10 else f"{kid:.0f}"


def format_duration(seconds: float) -> str:
    """Return a duration in words: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 1.5:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
