"""What a run is told where its user says nothing: chosen from photos and machine by rules, each with its reason."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.config import IMAGE_SIZES, PLAIN, TrainingConfig

CHOSEN = (
    "image_size",
    "memory_limit_mib",
    "discriminator",
    *PLAIN,
    "preset",
    "batch_size",
    "jit_compile",
    "steps",
    "refine_from",
    "refining_learning_rate",
)  # in this order

# On a CPU 128 px cost 2 to 4 times as much a picture as 64, and 256 px 10 times; a GPU is that much faster.
LARGEST_SIZE = {"cpu": 64, "gpu": 128}

# Images the generator learns from in all, least and most: with fewer there is nothing to look at yet, beyond it KID
# stands still. Few photos are learnt by heart by more passes.
IMAGES = {"cpu": (96_000, 192_000), "gpu": (200_000, 1_000_000)}
PASSES = 32  # over the photos, between those two
PLAIN_IMAGES = {"cpu": (100_000, 500_000), "gpu": (200_000, 2_000_000)}
PLAIN_PASSES = 300
REFINED = 5 / 12  # of a run, in images: 80,000 of 192,000
GROWN = 1 / 2  # of the images of a run from scratch

# KID x1000 by the images learnt from, measured with 7,180 photos of apples on white at 64 px (LOG.md, 2026-11-28).
EXPECTED_KID = ((16_000, 15.1), (48_000, 9.3), (168_000, 3.6), (208_000, 3.0))
EXPECTED_KID_PLAIN = ((60_000, 137.0), (120_000, 65.0), (312_000, 23.6))

MAX_HOURS = 10  # a night: who wants to wait longer says so by --steps


@dataclass(frozen=True)
class Machine:
    """What there is to compute with."""

    backend: str  # Keras's: tensorflow or jax
    gpu: str | None  # its name
    cores: int
    memory_mib: int

    @property
    def kind(self) -> str:
        """The key of the tables above, and the preset: cpu or gpu."""
        return "gpu" if self.gpu else "cpu"

    def __str__(self) -> str:
        return f"{self.cores} CPU cores, {self.memory_mib / 1024:.0f} GiB of memory, {self.gpu or 'no GPU'}"


@dataclass(frozen=True)
class Choice:
    """A field of the configuration, its value, and why, in a few words."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """Choices so far; what is `given` is never overridden."""

    given: Mapping[str, Any]
    choices: tuple[Choice, ...] = ()

    def plus(self, *choices: Choice) -> Plan:
        """Return the plan with `choices`, each with the given value where there is one."""
        settled = (Choice(c.name, self.given[c.name], "as given") if c.name in self.given else c for c in choices)
        return Plan(self.given, (*self.choices, *settled))

    @property
    def config(self) -> TrainingConfig:
        """The configuration; what is neither given nor chosen has its default."""
        return TrainingConfig(**{choice.name: choice.value for choice in self.choices} | dict(self.given))

    def table(self) -> str:
        """Return one line for each choice, without a final newline."""
        shown = [(c.name, f"{c.value:,}" if type(c.value) is int else str(c.value), c.reason) for c in self.choices]
        label, value = (max(len(row[column]) for row in shown) for column in (0, 1))
        return "\n".join(f"  {a:<{label}}  {b:<{value}}  {c}" for a, b, c in shown)


def choose_pictures(
    sides: Sequence[int], machine: Machine, grown_from_size: int | None = None
) -> tuple[Choice, Choice]:
    """Choose size and place of the pictures for photos whose shorter sides are `sides`, in pixels."""
    typical, largest = int(statistics.median(sides)), LARGEST_SIZE[machine.kind]
    size = max((s for s in IMAGE_SIZES if s <= min(typical, largest)), default=IMAGE_SIZES[0])
    reason = f"photos are {typical} px typically"
    if grown_from_size is not None:
        size, reason = min(2 * grown_from_size, IMAGE_SIZES[-1]), f"twice the {grown_from_size} px that it grows from"
    elif typical >= 2 * largest:
        reason += f"; a {machine.kind.upper()} is quick enough for {largest}"
    memory = min(2048, machine.memory_mib // 8)
    return (
        Choice("image_size", size, reason),
        Choice("memory_limit_mib", memory, "decoded photos beyond this stay on disk"),
    )


def choose_discriminator(name: str) -> tuple[Choice, ...]:
    """Return the choices that the discriminator `name` brings with it."""
    if name == "plain":
        return (
            Choice("discriminator", name, "learns from the photos alone, as in 2017"),
            *(Choice(field, value, "suits a plain discriminator") for field, value in PLAIN.items()),
        )
    return (Choice("discriminator", name, "ImageNet features: 10 times faster than a plain one"),)


def choose_networks(photos: int, image_size: int, machine: Machine) -> tuple[Choice, Choice, Choice]:
    """Choose networks, batch and compiler for so many photos of `image_size` pixels.

    The compiler goes by rule, though it could be measured: the same command must give the same losses, and a busy
    moment would decide otherwise now and then.
    """
    if machine.gpu:
        preset = Choice("preset", "gpu", "a GPU carries wide networks")
        batch_size, reason = (64, "keeps a GPU busy") if image_size <= 128 else (32, "fits a GPU's memory")
    else:
        preset = Choice("preset", "cpu", "wide networks would need a GPU")
        batch_size, reason = (16, "learns most per picture") if machine.cores < 8 else (32, "keeps the cores busy")
    if 2 * batch_size > photos:
        while 2 * batch_size > photos:
            batch_size //= 2
        reason = f"two to a pass over {photos} photos"
    if machine.backend == "tensorflow" and machine.gpu is None:
        compiler = Choice("jit_compile", False, "TensorFlow's own CPU kernels are faster than XLA's")
    else:
        compiler = Choice("jit_compile", True, f"XLA is faster with {machine.backend} on a {machine.kind.upper()}")
    return preset, Choice("batch_size", batch_size, reason), compiler


@dataclass(frozen=True)
class StepSeconds:
    """How long a batch takes in either stage, in seconds."""

    first: float
    refining: float

    def of_run(self, steps: float, first: float) -> float:
        """Return the seconds of `steps` batches, `first` of them in the first stage."""
        return first * self.first + (steps - first) * self.refining


def choose_length(
    photos: int, config: TrainingConfig, step_s: StepSeconds | None, machine: Machine, *, grown: bool
) -> Choice:
    """Choose the number of batches for so many photos; `grown` says that another run did the first stage.

    `step_s` is None where it was not measured.
    """
    plain = config.discriminator == "plain"
    least, most = (PLAIN_IMAGES if plain else IMAGES)[machine.kind]
    images = min(max((PLAIN_PASSES if plain else PASSES) * photos, least), most)
    if grown:
        images = round(images * GROWN)
    affordable = float(images)
    if step_s:
        affordable = MAX_HOURS * 3600 / step_s.of_run(1.0, first_stage(plain=plain, grown=grown)) * config.batch_size
    if affordable < images:
        reason = f"what {MAX_HOURS} hours allow; {images:,} images would be better"
    else:
        reason = f"{images:,} images, {images / photos:.0f} passes over the photos"
    return Choice("steps", max(1, round(min(images, affordable) / config.batch_size)), reason)


def first_stage(*, plain: bool, grown: bool) -> float:
    """Return the first stage's share of a run."""
    return 1.0 if plain else 0.0 if grown else 1.0 - REFINED


def choose_refinement(config: TrainingConfig, grown_from_size: int | None) -> tuple[Choice, ...]:
    """Choose where a run of `config.steps` begins to refine, and how fast; a grown one refines from its start."""
    if config.discriminator == "plain":
        return ()
    if grown_from_size is None:
        return (Choice("refine_from", round(config.steps * (1.0 - REFINED)), "the rest looks closer, at 128 px"),)
    start = Choice("refine_from", 0, "the run it grows from did the first stage")
    if grown_from_size == config.image_size:
        return (start,)
    return (start, Choice("refining_learning_rate", config.learning_rate, "new layers begin at random"))


def expected_kid(config: TrainingConfig) -> float:
    """Return the KID x1000 that a run of this length reached with photos of apples at 64 px."""
    images, kids = zip(*(EXPECTED_KID_PLAIN if config.discriminator == "plain" else EXPECTED_KID), strict=True)
    return float(np.exp(np.interp(np.log(config.steps * config.batch_size), np.log(images), np.log(kids))))


def in_words(seconds: float) -> str:
    """Return a duration as one would say it: a second, 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 1.5:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
