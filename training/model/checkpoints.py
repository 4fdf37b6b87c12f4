"""Checkpoints: every variable of the model and its optimizer in one file, written aside and renamed.

Keras's BackupAndRestore leaves out the seed generators and deletes its backup on success; ours is what is needed to
continue exactly, readable with numpy.load, and the same under every backend.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np

from training.config import TrainingConfig
from training.errors import CheckpointError
from training.model.gan import GAN
from training.model.networks import build_generator
from training.records import read_batches_done


def _named_variables(gan: GAN) -> Iterator[tuple[str, Any]]:
    """Yield every variable with a name that does not depend on the backend or on what else lives in the process."""
    discriminator = gan.discriminator
    parts = {
        "optimizer": gan.optimizer.variables,
        "generator": gan.generator.variables,
        "discriminator": discriminator.state if hasattr(discriminator, "state") else discriminator.variables,
        "average": gan.ema_generator.variables,
        "noise": [gan.noise.state],
    }
    for part, variables in parts.items():
        for index, variable in enumerate(variables):
            yield f"{part}/{index:03d}", variable


def save_checkpoint(gan: GAN, path: Path) -> None:
    """Write all state of `gan` to `path`: whole or not at all, also after a power cut.

    Raises:
        CheckpointError: the disk is full or not writable; an older checkpoint stays as it was.
    """
    aside = path.with_name(path.name + ".part")
    try:
        with aside.open("wb") as file:
            arrays: dict[str, Any] = {name: variable.numpy() for name, variable in _named_variables(gan)}
            np.savez(file, step=gan.step, **arrays)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"The checkpoint {path} could not be written: {error.strerror}.") from error


def load_checkpoint(gan: GAN, path: Path) -> None:
    """Set all state of `gan` to what `path` holds.

    Raises:
        CheckpointError: `path` is damaged or belongs to other networks; `gan` is unchanged.
    """
    _assign(dict(_named_variables(gan)), path)


@dataclass(frozen=True)
class TrainedGenerator:
    """The moving average of a run's generator at a checkpoint."""

    network: keras.Model
    config: TrainingConfig
    batch: int  # batches done before it


def load_generator(run: Path, which: str = "best") -> TrainedGenerator:
    """Return the generator of `run` at its "best" or "last" checkpoint, the last where no best is kept.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    config_file, checkpoint, best = run / "config.json", run / "checkpoint.npz", run / "best.npz"
    for file in (config_file, checkpoint):
        if not file.is_file():
            raise CheckpointError(
                f"{run} has no {file.name}: name the --out folder of a `fit` that has saved a checkpoint."
            )
    config = TrainingConfig.from_json(config_file.read_text(encoding="utf-8"))
    network = build_generator(config.latent_dim, config.generator_channels)
    chosen = best if which == "best" and best.is_file() else checkpoint
    _assign({f"average/{index:03d}": variable for index, variable in enumerate(network.variables)}, chosen)
    return TrainedGenerator(network, config, read_batches_done(chosen))


def _assign(variables: dict[str, Any], path: Path) -> None:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            values = {name: file[name] for name in variables if name in file.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
    for name, variable in variables.items():
        if name not in values or values[name].shape != tuple(variable.shape):
            raise CheckpointError(f"The checkpoint {path} belongs to other networks: {name} does not fit.")
    for name, variable in variables.items():
        variable.assign(values[name])
