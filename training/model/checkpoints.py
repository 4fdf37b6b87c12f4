"""Checkpoints: every variable of model and optimizer in one file.

Keras's BackupAndRestore omits the seed generators and deletes its backup on success. These files hold all state for an
exact resume, are readable with numpy.load, and are the same on every backend.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig, read_config
from training.errors import TrainingError
from training.model.gan import GAN
from training.model.latents import sample_latents
from training.model.networks import build_generator
from training.model.sampling import images_from_latents
from training.model.selector import Selector, load_selector
from training.records import UNREADABLE, open_atomically


def _named_variables(gan: GAN) -> dict[str, Any]:
    """Return every variable by a name independent of the backend."""
    discriminator = gan.discriminator
    parts = {
        "optimizer": gan.optimizer.variables,
        "generator": gan.generator.variables,
        "discriminator": discriminator.state if hasattr(discriminator, "state") else discriminator.variables,
        "average": gan.ema_generator.variables,
        "noise": [gan.noise.state],
    }
    return {f"{part}/{index:03d}": variable for part in parts for index, variable in enumerate(parts[part])}


def save_checkpoint(gan: GAN, path: Path) -> None:
    """Write all state of `gan` to `path`. Raises TrainingError; an older checkpoint is unchanged."""
    arrays: dict[str, Any] = {name: variable.numpy() for name, variable in _named_variables(gan).items()}
    try:
        with open_atomically(path) as file:
            np.savez(file, step=gan.step, **arrays)
    except OSError as error:
        raise TrainingError(
            f"Cannot write the checkpoint {path}: {error.strerror}; free space or fix permissions, then rerun `fit`."
        ) from error


def load_checkpoint(gan: GAN, path: Path) -> None:
    """Set all state of `gan` from `path`. Raises TrainingError; `gan` is unchanged."""
    _assign(_named_variables(gan), path)


@dataclass(frozen=True)
class TrainedGenerator:
    """The moving average of a run's generator at a checkpoint."""

    network: keras.Model
    config: TrainingConfig
    batch: int  # number of batches done
    selector: Selector | None = None  # of this checkpoint

    @property
    def digest(self) -> str:
        """The SHA-256 of the generator's weights, in hexadecimal."""
        return hashlib.sha256(b"".join(array.tobytes() for array in self.network.get_weights())).hexdigest()

    def sample_latents(self, seeds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the latents float32[N, latent_dim] of `seeds` int64[N], chosen by the selector if there is one."""
        sample = self.selector.sample_latents if self.selector else sample_latents
        return sample(seeds, self.config.latent_dim)

    def generate_images(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images uint8[N, S, S, 3] of `seeds` int64[N], as exported up to rounding."""
        return images_from_latents(self.network, self.sample_latents(seeds))


def load_generator(run: Path, which: str = "best", *, with_selector: bool = True) -> TrainedGenerator:
    """Return `run`'s generator at its "best" checkpoint, if it measures KID, or "last". Raises TrainingError."""
    config_file, checkpoint, best = run / "config.json", run / "checkpoint.npz", run / "best.npz"
    for file in (config_file, checkpoint):
        if not file.is_file():
            raise TrainingError(f"{run} has no {file.name}; name the --out folder of a `fit` that saved a checkpoint.")
    config = read_config(config_file)
    network = build_generator(config.latent_dim, config.generator_channels)
    path = best if which == "best" and config.keep_best and best.is_file() else checkpoint
    batch = _assign({f"average/{index:03d}": variable for index, variable in enumerate(network.variables)}, path)
    generator = TrainedGenerator(network, config, batch)
    if not with_selector:
        return generator
    file = run / "selector.npz"
    return replace(generator, selector=load_selector(file, latent_dim=config.latent_dim, generator=generator.digest))


def _assign(variables: dict[str, Any], path: Path) -> int:
    """Assign the arrays of `path` to `variables`, and return its batches. Raises TrainingError before the first one."""
    try:
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream) as file:
            batch, values = int(file["step"]), {name: file[name] for name in variables if name in file.files}
    except UNREADABLE as error:
        raise TrainingError(
            f"The checkpoint {path} cannot be read ({error}); restore it from a backup, or start a new run."
        ) from error
    for name, variable in variables.items():
        if name not in values or values[name].shape != tuple(variable.shape):
            raise TrainingError(
                f"The checkpoint {path} belongs to other networks ({name} does not fit); "
                "use the config.json that was written with it."
            )
    for name, variable in variables.items():
        variable.assign(values[name])
    return batch
