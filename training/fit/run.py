"""Fit a GAN to a folder of photos, in a run folder that can be interrupted and resumed at any moment."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.data.dataset import describe_photos
from training.data.holdout import Split
from training.data.photos import Photos
from training.errors import FeatureWeightsMissing, TrainingError
from training.evaluate.features import build_extractor, features_of_photos
from training.evaluate.metrics import kernel_distance
from training.fit.callbacks import Checkpoints, Grids, History, KeepBest, Progress, StopOnSignal
from training.fit.plots import draw_networks
from training.model.checkpoints import TrainedGenerator, load_checkpoint, load_generator
from training.model.gan import GAN, build_gan
from training.model.latents import MAX_SEED, sample_latents
from training.model.projected import STATISTICS_PHOTOS
from training.model.replicas import count_replicas, distribute_batches
from training.records import read_batches_done, read_record, write_record, write_whole

KID_SUBSETS = 10  # a fifth of what `evaluate` takes, in a second: the same seeds and photos are compared each time
BATCHES_AHEAD = 16  # of latents


def train(photos: Photos, split: Split, run: Path, config: TrainingConfig, grow_from: Path | None = None) -> int:
    """Train until `config.steps` batches are done, in all, and return the number done.

    `run` receives config.json, photos.json, history.csv, kid.csv, losses.png, grids/, drawings of the networks,
    tensorboard/, checkpoint.npz and best.npz. Where `run` holds a checkpoint the training goes on from there; the
    number returned is smaller than `config.steps` if a signal ended it early. A new run begins with the weights of
    the generator of the run `grow_from`, as far as they fit.

    Raises:
        TrainingError: it cannot begin or go on; nothing in `run` is lost.
    """
    replicas = count_replicas()
    if config.batch_size % replicas:
        raise TrainingError(f"batch_size is {config.batch_size}: {replicas} replicas need a multiple of {replicas}.")
    print(split.describe())
    enable_determinism(config)
    run.mkdir(parents=True, exist_ok=True)
    config_file, checkpoint = run / "config.json", run / "checkpoint.npz"
    if config_file.exists():
        config.refuse_to_continue(TrainingConfig.from_json(config_file.read_text(encoding="utf-8")))
    done = read_batches_done(checkpoint)
    gan = build_gan(config, refining=config.is_refining(done))
    if checkpoint.exists():
        load_checkpoint(gan, checkpoint)
    else:
        if grow_from is not None:
            source = load_generator(grow_from)
            gan.copy_generator_weights(source.network)
            write_record(run / "grown_from.json", describe_source(grow_from, source))
        standardise(gan, photos, split)
    write_record(run / "photos.json", describe_photos(photos, split))
    write_whole(config_file, config.to_json())
    if not checkpoint.exists():
        without_drawing = draw_networks([gan.generator], run)
        if without_drawing:
            print(without_drawing)

    keep_best, stop = build_keep_best(photos, split, run, config), StopOnSignal()
    with stop.listening():
        done = continue_stage(gan, photos, split, run, keep_best, stop)
        if done == gan.last_step < config.steps and not stop.received:
            print(f"Batch {done:,}: a fresh discriminator looks closer from here on.", flush=True)
            average = gan.ema_generator
            gan = build_gan(config, refining=True)
            gan.copy_generator_weights(average)
            standardise(gan, photos, split)
            done = continue_stage(gan, photos, split, run, keep_best, stop)
    if done < config.steps:
        name = stop.received.name if stop.received else "The model"
        print(f"{name} stopped the training at batch {done} of {config.steps}; the same command goes on from there.")
    return done


def describe_source(run: Path, source: TrainedGenerator) -> dict[str, Any]:
    """Return what the model card will say of the run that another one grew from."""
    compute = read_record(run / "compute.json") if (run / "compute.json").exists() else {}
    return {"run": run.resolve().name, "batch": source.batch, **compute, "config": asdict(source.config)}


def standardise(gan: GAN, photos: Photos, split: Split) -> None:
    """Measure the projected discriminator's features on some of the photos trained on."""
    if gan.config.discriminator == "projected":
        rows = np.random.default_rng((gan.config.seed, 3)).permutation(split.training)[:STATISTICS_PHOTOS]
        gan.discriminator.set_feature_statistics(photos.pixels[np.sort(rows)])


def enable_determinism(config: TrainingConfig) -> None:
    """Have TensorFlow's own kernels add up in the same order whenever the program runs, if `config` asks for it.

    To be called before any operation. XLA on a CPU does so anyway, under JAX, too, and Keras would not compile with
    XLA once this is switched on.
    """
    xla = config.jit_compile and count_replicas() == 1
    if config.deterministic and keras.backend.backend() == "tensorflow" and not xla:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def build_keep_best(
    photos: Photos, split: Split, run: Path, config: TrainingConfig
) -> Callable[[GAN, Checkpoints], list[KeepBest]]:
    """Return a function that makes the callback which measures KID; it makes none where that is not wanted."""
    if not config.keep_best:
        return lambda gan, checkpoints: []
    try:
        judge = build_judge(photos, split, run / "photos")
    except FeatureWeightsMissing as error:
        print(f"{error}; without it no KID is measured, and the run keeps its last checkpoint.")
        return lambda gan, checkpoints: []
    return lambda gan, checkpoints: [KeepBest(run, config, gan.step, gan.ema_generator, judge, checkpoints)]


def continue_stage(
    gan: GAN,
    photos: Photos,
    split: Split,
    run: Path,
    build_callback: Callable[[GAN, Checkpoints], list[KeepBest]],
    stop: StopOnSignal,
) -> int:
    """Train `gan` from the batch it is at to the last of its stage; return the number of batches done."""
    config, first_step = gan.config, gan.step
    checkpoints = Checkpoints(run, config.checkpoint_every_s, first_step)
    keep_best = build_callback(gan, checkpoints)
    if first_step >= gan.last_step:
        for callback in keep_best:  # the run may have been killed while its last batch was measured
            callback.set_model(gan)
            checkpoints.set_model(gan)
            callback.on_train_begin()
        if first_step >= config.steps:
            print(f"{run} is at batch {first_step} already: nothing is left to do.")
        return first_step
    if first_step > gan.first_step:
        print(f"Resuming at batch {first_step}.")
    progress = Progress(config, first_step)
    with closing(progress):
        gan.fit(
            distribute_batches(lambda: batches(photos.pixels, split.training, config, first_step)),
            steps_per_epoch=gan.last_step - first_step,
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
    return gan.step


def build_judge(photos: Photos, split: Split, cache_dir: Path) -> Callable[[NDArray[np.uint8]], tuple[float, float]]:
    """Return a function: pictures uint8[N, S, S, 3] -> KID to the photos trained on, and its standard deviation.

    Raises FeatureWeightsMissing if the network that judges is not installed.
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
