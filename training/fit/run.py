"""Fit a GAN to a folder of photos, in a run folder that can be interrupted and resumed at any moment."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from itertools import count
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.data.dataset import describe
from training.data.holdout import Split
from training.data.photos import Photos
from training.errors import JudgeMissing, TrainingError
from training.evaluate.features import build_extractor, features_of_photos
from training.evaluate.metrics import kernel_distance
from training.fit.callbacks import Checkpoints, Grids, History, KeepBest, Progress, StopOnSignal
from training.fit.plots import draw_networks
from training.model.checkpoints import load_checkpoint
from training.model.gan import GAN, build_gan
from training.model.latents import MAX_SEED, sample_latents
from training.model.replicas import count_replicas, share_out
from training.records import write_record, write_whole

KID_SUBSETS = 10  # a fifth of what `evaluate` takes, in a second: the same seeds and photos are compared each time
BATCHES_AHEAD = 16  # of latents


def train(photos: Photos, split: Split, run: Path, config: TrainingConfig) -> int:
    """Train until `config.steps` batches are done, in all, and return the number done.

    `run` receives config.json, photos.json, history.csv, kid.csv, losses.png, grids/, drawings of the networks,
    tensorboard/, checkpoint.npz and best.npz. Where `run` holds a checkpoint the training goes on from there; the
    number returned is smaller than `config.steps` if a signal ended it early.

    Raises:
        TrainingError: it cannot begin or go on; nothing in `run` is lost.
    """
    replicas = count_replicas()
    if config.batch_size % replicas:
        raise TrainingError(f"batch_size is {config.batch_size}: {replicas} replicas need a multiple of {replicas}.")
    print(split.sentence())
    fix_the_order_of_sums(config)
    run.mkdir(parents=True, exist_ok=True)
    config_file = run / "config.json"
    if config_file.exists():
        config.refuse_to_continue(TrainingConfig.from_json(config_file.read_text(encoding="utf-8")))
    write_record(run / "photos.json", describe(photos, split))
    write_whole(config_file, config.to_json())

    gan = build_gan(config)
    checkpoint = run / "checkpoint.npz"
    if checkpoint.exists():
        load_checkpoint(gan, checkpoint)
    else:
        without_drawing = draw_networks([gan.generator, gan.discriminator], run)
        if without_drawing:
            print(without_drawing)
    return continue_training(gan, photos, split, run)


def fix_the_order_of_sums(config: TrainingConfig) -> None:
    """Have TensorFlow's own kernels add up in the same order whenever the program runs, if `config` asks for it.

    To be called before any operation. XLA on a CPU does so anyway, under JAX, too, and Keras would not compile with
    XLA once this is switched on.
    """
    xla = config.jit_compile and count_replicas() == 1
    if config.deterministic and keras.backend.backend() == "tensorflow" and not xla:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def continue_training(gan: GAN, photos: Photos, split: Split, run: Path) -> int:
    """Train `gan` from the step its optimizer is at to the last; return the number of batches done."""
    config, first_step = gan.config, int(gan.optimizer.iterations.numpy())
    checkpoints = Checkpoints(run, config.checkpoint_every_s, first_step)
    keep_best = []
    if config.keep_best:
        try:
            judge = build_judge(photos, split, run / "photos")
            keep_best.append(KeepBest(run, config, first_step, gan.ema_generator, judge, checkpoints))
        except JudgeMissing as error:
            print(f"{error} The run keeps its last checkpoint, not its best.")
    if first_step >= config.steps:
        for callback in keep_best:  # the run may have been killed while its last batch was measured
            callback.set_model(gan)
            checkpoints.set_model(gan)
            callback.on_train_begin()
        print(f"{run} is at batch {first_step} already: nothing is left to do.")
        return first_step
    if first_step:
        print(f"Resuming at batch {first_step}.")
    stop, progress = StopOnSignal(), Progress(config, first_step)
    with stop.listening(), closing(progress):
        gan.fit(
            share_out(lambda: batches(photos.pixels, split.training, config, first_step)),
            steps_per_epoch=config.steps - first_step,
            shuffle=False,
            verbose=0,
            # In this order: what is drawn may fail (a full disk), and must find its rows written and its weights saved.
            callbacks=[
                stop,
                progress,
                History(run, config.log_every, first_step),
                checkpoints,
                *keep_best,
                Grids(run, config.grid_every, first_step, gan.ema_generator),
            ],
        )
    done = int(gan.optimizer.iterations.numpy())
    if done < config.steps:
        name = stop.received.name if stop.received else "The model"
        print(f"{name} stopped the training at batch {done} of {config.steps}; the same command goes on from there.")
    return done


def build_judge(photos: Photos, split: Split, cache_dir: Path) -> Callable[[NDArray[np.uint8]], tuple[float, float]]:
    """Return a function: pictures uint8[N, S, S, 3] -> KID to the photos trained on, and its standard deviation.

    Raises JudgeMissing if the network that judges is not installed.
    """
    extract = build_extractor()

    @cache
    def seen() -> NDArray[np.float32]:
        return features_of_photos(extract, photos, cache_dir)[split.training]

    return lambda pictures: kernel_distance(seen(), extract(pictures), subsets=KID_SUBSETS)


def batches(
    pixels: NDArray[np.uint8], rows: NDArray[np.intp], config: TrainingConfig, first_step: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield photos uint8[batch_size, S, S, 3] and latents float32[batch_size, latent_dim] from batch `first_step` on.

    The photos are those `rows` of `pixels`: picked as they are needed, because `pixels` may be too large for memory.
    What a batch holds depends on the configuration's seed and its number alone, so a resumed run sees what an
    uninterrupted one would have seen. Each epoch shuffles anew; the photos left over at its end wait for the next.
    """
    per_epoch = len(rows) // config.batch_size
    order = np.empty(0, np.intp)
    for step, latents in enumerate(latents_of_batches(config, first_step), first_step):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or len(order) == 0:
            order = np.random.default_rng((config.seed, 0, epoch)).permutation(rows)
        chosen = order[position * config.batch_size :][: config.batch_size]
        yield pixels[chosen], latents


def latents_of_batches(config: TrainingConfig, first_step: int) -> Iterator[NDArray[np.float32]]:
    """Yield float32[batch_size, latent_dim] from batch `first_step` on, each by its number.

    Drawn for BATCHES_AHEAD at a time: after a step nothing of what it takes is in the caches, which costs 0.5 ms.
    """
    shape = (BATCHES_AHEAD, config.batch_size, config.latent_dim)
    for first in count(first_step, BATCHES_AHEAD):
        generators = [np.random.default_rng((config.seed, 1, first + ahead)) for ahead in range(BATCHES_AHEAD)]
        seeds = [generator.integers(MAX_SEED, size=config.batch_size, endpoint=True) for generator in generators]
        yield from sample_latents(np.concatenate(seeds), config.latent_dim).reshape(shape)
