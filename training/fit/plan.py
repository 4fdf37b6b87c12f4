"""What a run is told where its user says nothing: chosen from photos and machine by rules, each with its reason."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.config import IMAGE_SIZES, TrainingConfig

CHOSEN = ("image_size", "memory_limit_mib", "preset", "batch_size", "jit_compile", "steps")  # in this order

# On a CPU 128 px cost 2 to 4 times as much a picture as 64, and 256 px 10 times; a GPU is that much faster.
LARGEST_SIZE = {"cpu": 64, "gpu": 128}

# Pictures the discriminator sees, least and most: below it there is nothing to look at yet, above it stands still.
PICTURES = {"cpu": (100_000, 500_000), "gpu": (200_000, 2_000_000)}
PASSES = 300  # over the photos, between those two: more only learns few photos by heart

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


def choose_pictures(sides: Sequence[int], machine: Machine) -> tuple[Choice, Choice]:
    """Choose size and place of the pictures for photos whose shorter sides are `sides`, in pixels."""
    typical, largest = int(statistics.median(sides)), LARGEST_SIZE[machine.kind]
    size = max((s for s in IMAGE_SIZES if s <= min(typical, largest)), default=IMAGE_SIZES[0])
    reason = f"photos are {typical} px typically"
    if typical >= 2 * largest:
        reason += f"; a {machine.kind.upper()} is quick enough for {largest}"
    memory = min(2048, machine.memory_mib // 8)
    return (
        Choice("image_size", size, reason),
        Choice("memory_limit_mib", memory, "decoded photos beyond this stay on disk"),
    )


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


def choose_length(photos: int, batch_size: int, step_s: float | None, machine: Machine) -> Choice:
    """Choose the number of batches for so many photos, where one batch takes `step_s` seconds if that is known."""
    least, most = PICTURES[machine.kind]
    pictures = min(max(PASSES * photos, least), most)
    affordable = MAX_HOURS * 3600 / step_s * batch_size if step_s else pictures
    if affordable < pictures:
        reason = f"what {MAX_HOURS} hours allow; {pictures:,} pictures would be better"
    elif pictures == least:
        reason = f"{least:,} pictures, the least that shows anything"
    else:
        reason = f"{pictures:,} pictures, {pictures / photos:.0f} passes over the photos"
    return Choice("steps", max(1, round(min(pictures, affordable) / batch_size)), reason)


def in_words(seconds: float) -> str:
    """Return a duration as one would say it: a second, 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 1.5:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
