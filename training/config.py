"""The settings of a run; their fields are the flags of `fit`."""

from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

from training.errors import ConfigError, TrainingError
from training.records import read_record

IMAGE_SIZES = (32, 64, 128, 256)
# Settings that older runs lack: they had the default.
NEWER_FIELDS = ("correct_black_level",)
# Also flags of `preview`.
PREVIEW_FIELDS = ("image_size", "correct_black_level", "flip", "translate_fraction", "translate_probability", "seed")

# Channels per resolution: the generator's from 4x4 up, the discriminator's from image size / 2 down to 4x4. They taper:
# constant width costs 4.4 times as much per image at 64 px and has no measurable benefit.
GENERATOR_CHANNELS = {
    ("cpu", 32): (256, 160, 80, 48),
    ("cpu", 64): (256, 160, 80, 48, 24),
    ("cpu", 128): (256, 160, 80, 48, 24, 16),
    ("cpu", 256): (256, 160, 80, 48, 24, 16, 8),
    ("gpu", 32): (512, 512, 256, 128),
    ("gpu", 64): (512, 512, 256, 128, 64),
    ("gpu", 128): (512, 512, 512, 256, 128, 64),
    ("gpu", 256): (512, 512, 512, 256, 128, 64, 32),
}
# Values for the plain discriminator; the defaults of the fields are for the projected one.
PLAIN_SETTINGS = {
    "beta_1": 0.5,
    "final_rate_fraction": 0.1,
    "translate_fraction": 0.125,
    "translate_probability": 0.3,
    "ema_half_life": 3_000,
}
DISCRIMINATOR_CHANNELS = {
    ("cpu", 32): (48, 96, 128),
    ("cpu", 64): (32, 64, 96, 128),
    ("cpu", 128): (16, 32, 64, 96, 128),
    ("cpu", 256): (16, 24, 32, 64, 96, 128),
    ("gpu", 32): (128, 256, 512),
    ("gpu", 64): (64, 128, 256, 512),
    ("gpu", 128): (64, 128, 256, 512, 512),
    ("gpu", 256): (32, 64, 128, 256, 512, 512),
}


def option(
    default: Any, text: str, *, allowed: tuple[Any, ...] = (), low: float = -inf, high: float = inf, fixed: bool = True
) -> Any:
    """Return a field with default, help `text` and allowed values.

    The range from `low` to `high` is inclusive. A `fixed` field affects the weights, so a resumed run cannot change it.
    """
    return field(default=default, metadata={"help": text, "allowed": allowed, "low": low, "high": high, "fixed": fixed})


@dataclass(frozen=True)
class TrainingConfig:
    """The hyperparameters of one run. Raises ConfigError if a value is outside its range."""

    image_size: int = option(64, "width and height of the images, in pixels", allowed=IMAGE_SIZES)
    discriminator: str = option(
        "projected",
        "projected has heads on ImageNet features, plain is a DCGAN that learns from the photos alone",
        allowed=("projected", "plain"),
    )
    preset: str = option("cpu", "width of the networks: for two cores, or one large GPU", allowed=("cpu", "gpu"))
    latent_dim: int = option(128, "length of the latent vector", low=2, high=4096)
    steps: int = option(
        15_000, "number of batches; the learning rate falls in the second half", low=1, high=10_000_000, fixed=False
    )
    batch_size: int = option(16, "photos per batch", low=2, high=4096)
    refine_from: int = option(
        5_000,
        "batch at which the refining stage starts: a new projected discriminator for 128 px; 0 refines the whole run",
        low=0,
        high=10_000_000,
    )
    learning_rate: float = option(5e-4, "Adam's learning rate in the first half", low=1e-8, high=1.0)
    refining_learning_rate: float = option(
        2.5e-4, "Adam's learning rate in the first half of the refining stage", low=1e-8, high=1.0
    )
    final_rate_fraction: float = option(
        0.05, "learning rate at the end, as a fraction of the initial one", low=0.0, high=1.0
    )
    beta_1: float = option(0.0, "Adam's decay of the first moment; 0.9 does not train a GAN", low=0.0, high=0.999)
    beta_2: float = option(0.99, "Adam's decay of the second moment", low=0.0, high=0.9999)
    r1_gamma: float = option(0.0, "R1 penalty of the plain discriminator; 0 turns it off", low=0.0, high=1000.0)
    r1_sigma: float = option(0.05, "noise of the approximate R1 penalty, in units of [-1, 1]", low=1e-4, high=1.0)
    correct_black_level: bool = option(
        False, "make the darkest pixels of a photo black where stray light or its camera made them grey"
    )
    flip: bool = option(True, "mirror half of the images for the discriminator")
    translate_fraction: float = option(0.0625, "largest shift, as a fraction of the image's side", low=0.0, high=0.5)
    translate_probability: float = option(0.7, "probability of a shift", low=0.0, high=1.0)
    ema_half_life: int = option(10_000, "half-life of the generator's moving average, in photos", low=1, high=10**7)
    holdout_fraction: float = option(
        0.1, "fraction of the photos held out for evaluation, in groups of consecutive photos", low=0.0, high=0.5
    )
    seed: int = option(0, "fixes initial weights, the order of photos and all noise", low=0, high=2**31 - 1)
    jit_compile: bool = option(True, "compile the training step with XLA", fixed=False)
    deterministic: bool = option(True, "give equal bits for equal commands on a CPU, resumed or not", fixed=False)
    memory_limit_mib: int = option(
        2048, "memory for decoded photos, in MiB; beyond it they stay on disk", low=0, high=2**20, fixed=False
    )
    log_every: int = option(50, "batches between rows of history.csv", low=1, high=10**6, fixed=False)
    grid_every: int = option(500, "batches between image grids", low=1, high=10**7, fixed=False)
    keep_best: bool = option(True, "measure KID and keep the best checkpoint", fixed=False)
    evaluate_every: int = option(1_000, "batches between measurements of KID", low=1, high=10**7, fixed=False)
    evaluate_count: int = option(500, "generated images for each measurement", low=50, high=10_000, fixed=False)
    checkpoint_every_s: float = option(120.0, "seconds between checkpoints", low=0.0, high=86_400.0, fixed=False)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if meta["allowed"] and value not in meta["allowed"]:
                raise ConfigError(f"{f.name} is {value!r}; set it to one of {', '.join(map(str, meta['allowed']))}.")
            # A bool is also an int. NaN compares false, so it is out of range.
            if not isinstance(value, (bool, str)) and not meta["low"] <= value <= meta["high"]:
                raise ConfigError(f"{f.name} is {value!r}; set it to a value from {meta['low']} to {meta['high']}.")

    @property
    def first_refining_step(self) -> int:
        """The first batch of the refining stage; `steps` without that stage."""
        return self.steps if self.discriminator == "plain" else min(self.refine_from, self.steps)

    @property
    def generator_channels(self) -> tuple[int, ...]:
        """Channels of the generator at 4x4, 8x8, ..., image_size x image_size."""
        return GENERATOR_CHANNELS[self.preset, self.image_size]

    @property
    def discriminator_channels(self) -> tuple[int, ...]:
        """Channels of the discriminator at image_size / 2, ..., 8x8, 4x4."""
        return DISCRIMINATOR_CHANNELS[self.preset, self.image_size]

    def check_resumable(self, previous: "TrainingConfig") -> None:
        """Raise ConfigError if a run with `previous` settings cannot resume with these."""
        for f in fields(self):
            value, previous_value = getattr(self, f.name), getattr(previous, f.name)
            if f.metadata["fixed"] and value != previous_value:
                raise ConfigError(
                    f"{f.name} is {value!r}, but the run began with {previous_value!r}; "
                    f"set it to {previous_value!r}, or choose a new --out."
                )


def read_config(path: Path) -> TrainingConfig:
    """Return the configuration in `path`, a config.json.

    A free setting that is newer than the file has its default, as have NEWER_FIELDS.
    Raises TrainingError if it is missing or damaged, a value is invalid, a setting unknown or a fixed one missing.
    """
    config = read_record(path, TrainingConfig)
    names = read_record(path, dict[str, Any]).keys()
    is_fixed = {f.name: f.metadata["fixed"] for f in fields(config)}
    faults = [f"has the unknown setting {name!r:.80}" for name in names if name not in is_fixed]
    required = {name for name in is_fixed if is_fixed[name]}.difference(NEWER_FIELDS)
    faults += [f"lacks the setting {name!r}" for name in is_fixed if name in required and name not in names]
    if faults:
        raise TrainingError(f"{path} {faults[0]}; restore it from a backup.")
    return config
