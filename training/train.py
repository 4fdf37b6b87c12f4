"""Fit a GAN to a folder of photos, in a run folder that can be interrupted and resumed at any moment."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from training.callbacks import Checkpoints, Grids, History, Progress, StopOnSignal
from training.checkpoints import load_checkpoint
from training.config import TrainingConfig
from training.errors import TrainingError
from training.gan import GAN, build_gan
from training.latents import MAX_SEED, sample_latents
from training.photos import Photos, load_photos
from training.plots import draw_networks
from training.records import read_record, write_record, write_whole
from training.replicas import count_replicas, share_out

MIN_PHOTOS = 50  # of fewer the discriminator knows each by heart within minutes, and the generator copies them


def fit(photos_folder: Path, run: Path, config: TrainingConfig) -> int:
    """Train until `config.steps` batches are done, in all, and return the number done.

    `run` receives config.json, photos.json, history.csv, losses.png, grids/, drawings of the networks, tensorboard/
    and checkpoint.npz. Where `run` holds a checkpoint the training goes on from there; the number returned is smaller
    than `config.steps` if a signal ended it early.

    Raises:
        TrainingError: it cannot begin or go on; nothing in `run` is lost.
    """
    if run.resolve().is_relative_to(photos_folder.resolve()):
        raise TrainingError(f"--out {run} lies inside --photos {photos_folder}: the grids would become photos.")
    replicas = count_replicas()
    if config.batch_size % replicas:
        raise TrainingError(f"batch_size is {config.batch_size}: {replicas} replicas need a multiple of {replicas}.")
    if config.deterministic:
        fix_the_order_of_sums(config)
    run.mkdir(parents=True, exist_ok=True)
    config_file = run / "config.json"
    if config_file.exists():
        config.refuse_to_continue(TrainingConfig.from_json(config_file.read_text(encoding="utf-8")))
    photos = load_photos(
        photos_folder,
        config.image_size,
        cache_dir=run / "photos",
        memory_limit_bytes=config.memory_limit_mib * 2**20,
    )
    print(photos.summary.table())
    needed = max(MIN_PHOTOS, config.batch_size)
    if len(photos.pixels) < needed:
        raise TrainingError(
            f"{photos_folder} has {len(photos.pixels)} usable photos: at least {needed} are needed, {MIN_PHOTOS} to "
            f"learn from and {config.batch_size} to fill a batch."
        )
    refuse_other_photos(photos, run / "photos.json")
    write_whole(config_file, config.to_json())

    gan = build_gan(config)
    checkpoint = run / "checkpoint.npz"
    if checkpoint.exists():
        load_checkpoint(gan, checkpoint)
    else:
        without_drawing = draw_networks([gan.generator, gan.discriminator], run)
        if without_drawing:
            print(without_drawing)
    return continue_training(gan, photos.pixels, run)


def fix_the_order_of_sums(config: TrainingConfig) -> None:
    """Have TensorFlow's own kernels add up in the same order whenever the program runs; call it before any operation.

    XLA on a CPU does so anyway, under JAX, too, and Keras would not compile with XLA once this is switched on.
    """
    if keras.backend.backend() == "tensorflow" and not (config.jit_compile and count_replicas() == 1):
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def refuse_other_photos(photos: Photos, record: Path) -> None:
    """Write what is known of `photos` to `record`; raise TrainingError if the run there began with other pixels."""
    digest = hashlib.sha256(photos.pixels.data).hexdigest()
    if record.exists() and read_record(record).get("pixels_sha256") != digest:
        raise TrainingError(
            f"The photos differ from those the run began with (see {record}): "
            "restore them, or choose a new --out for the new set."
        )
    write_record(record, {**asdict(photos.summary), "pixels_sha256": digest})


def continue_training(gan: GAN, pixels: NDArray[np.uint8], run: Path) -> int:
    """Train `gan` on `pixels` from the step its optimizer is at to the last; return the number of batches done."""
    config, first_step = gan.config, int(gan.optimizer.iterations.numpy())
    if first_step >= config.steps:
        print(f"{run} is at batch {first_step} already: nothing is left to do.")
        return first_step
    if first_step:
        print(f"Resuming at batch {first_step}.")
    stop = StopOnSignal()
    with stop.listening():
        gan.fit(
            share_out(lambda: batches(pixels, config, first_step)),
            steps_per_epoch=config.steps - first_step,
            shuffle=False,
            verbose=0,
            # In this order: what is drawn may fail (a full disk), and must find its rows written and its weights saved.
            callbacks=[
                stop,
                Progress(config, first_step),
                History(run, config.log_every, first_step),
                Checkpoints(run, config.checkpoint_every_s, first_step),
                Grids(run, config.grid_every, first_step, gan.ema_generator),
            ],
        )
    done = int(gan.optimizer.iterations.numpy())
    if done < config.steps:
        name = stop.received.name if stop.received else "The model"
        print(f"{name} stopped the training at batch {done} of {config.steps}; the same command goes on from there.")
    return done


def batches(
    pixels: NDArray[np.uint8], config: TrainingConfig, first_step: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield photos uint8[batch_size, S, S, 3] and latents float32[batch_size, latent_dim] from batch `first_step` on.

    What a batch holds depends on the configuration's seed and its number alone, so a resumed run sees what an
    uninterrupted one would have seen. Each epoch shuffles anew; the photos left over at its end wait for the next.
    """
    per_epoch = len(pixels) // config.batch_size
    step, order = first_step, np.empty(0, np.intp)
    while True:
        epoch, position = divmod(step, per_epoch)
        if position == 0 or len(order) == 0:
            order = np.random.default_rng((config.seed, 0, epoch)).permutation(len(pixels))
        chosen = order[position * config.batch_size :][: config.batch_size]
        seeds = np.random.default_rng((config.seed, 1, step)).integers(MAX_SEED, size=config.batch_size, endpoint=True)
        yield pixels[chosen], sample_latents(seeds, config.latent_dim)
        step += 1
