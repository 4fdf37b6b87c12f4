"""Fit a GAN to a folder of photos, in a run folder that can be interrupted and resumed at any moment."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import cache
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from training.callbacks import Checkpoints, Grids, History, KeepBest, Progress, StopOnSignal
from training.checkpoints import load_checkpoint
from training.config import TrainingConfig
from training.errors import JudgeMissing, TrainingError
from training.features import build_extractor, features_of_photos
from training.gan import GAN, build_gan
from training.holdout import Split, split_photos
from training.latents import MAX_SEED, sample_latents
from training.metrics import kernel_distance
from training.photos import Photos, load_photos
from training.plots import draw_networks
from training.records import read_record, write_record, write_whole
from training.replicas import count_replicas, share_out

MIN_PHOTOS = 50  # of fewer the discriminator knows each by heart within minutes, and the generator copies them
KID_SUBSETS = 10  # a fifth of what `evaluate` takes, in a second: the same seeds and photos are compared each time


def fit(photos_folder: Path, run: Path, config: TrainingConfig) -> int:
    """Train until `config.steps` batches are done, in all, and return the number done.

    `run` receives config.json, photos.json, history.csv, kid.csv, losses.png, grids/, drawings of the networks,
    tensorboard/, checkpoint.npz and best.npz. Where `run` holds a checkpoint the training goes on from there; the
    number returned is smaller than `config.steps` if a signal ended it early.

    Raises:
        TrainingError: it cannot begin or go on; nothing in `run` is lost.
    """
    refuse_run_among_photos(photos_folder, run)
    return train(load_enough_photos(photos_folder, run, config), run, config)


def refuse_run_among_photos(photos_folder: Path, run: Path) -> None:
    """Raise TrainingError if the run would lie inside the photos."""
    if run.resolve().is_relative_to(photos_folder.resolve()):
        raise TrainingError(f"--out {run} lies inside --photos {photos_folder}: the grids would become photos.")


def load_enough_photos(photos_folder: Path, run: Path, config: TrainingConfig) -> Photos:
    """Return the photos and say what became of every file. Raises TrainingError if they are too few."""
    photos = load_photos(
        photos_folder,
        config.image_size,
        cache_dir=run / "photos",
        memory_limit_bytes=config.memory_limit_mib * 2**20,
    )
    print(photos.summary.table())
    refuse_too_few_photos(len(photos.pixels), photos_folder)
    return photos


def refuse_too_few_photos(usable: int, folder: Path) -> None:
    """Raise TrainingError if `folder` has too few usable photos to learn from."""
    if usable < MIN_PHOTOS:
        raise TrainingError(f"{folder} has {usable} usable photos: at least {MIN_PHOTOS} are needed to learn from.")


def train(photos: Photos, run: Path, config: TrainingConfig) -> int:
    """Train on `photos` in `run`; else as `fit`."""
    replicas = count_replicas()
    if config.batch_size % replicas:
        raise TrainingError(f"batch_size is {config.batch_size}: {replicas} replicas need a multiple of {replicas}.")
    split = split_photos(photos.files, config.holdout_fraction)
    refuse_large_batch(len(split.training), len(split.held_out), config.batch_size)
    print(split.sentence())
    fix_the_order_of_sums(config)
    run.mkdir(parents=True, exist_ok=True)
    config_file = run / "config.json"
    if config_file.exists():
        config.refuse_to_continue(TrainingConfig.from_json(config_file.read_text(encoding="utf-8")))
    refuse_other_photos(photos, split, run / "photos.json")
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


def refuse_large_batch(training: int, held_out: int, batch_size: int) -> None:
    """Raise TrainingError if the photos to train on do not fill one batch."""
    if training < batch_size:
        raise TrainingError(
            f"{training} usable photos are left to train on, with {held_out} more held out: "
            f"a batch needs {batch_size}, so choose a smaller --batch-size."
        )


def refuse_other_photos(photos: Photos, split: Split, record: Path) -> None:
    """Write what is known of `photos` to `record`; raise TrainingError if the run there began with others."""
    mine = {
        **asdict(photos.summary),
        "pixels_sha256": photos.sha256,
        "held_out": len(split.held_out),
        "held_out_arcs": [asdict(arc) for arc in split.arcs],
    }
    if record.exists():
        begun = read_record(record)
        if any(begun.get(name) != mine[name] for name in ("pixels_sha256", "held_out_arcs")):
            raise TrainingError(
                f"The photos or their names differ from those the run began with (see {record}): "
                "restore them, or choose a new --out for the new set."
            )
    write_record(record, mine)


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
    step, order = first_step, np.empty(0, np.intp)
    while True:
        epoch, position = divmod(step, per_epoch)
        if position == 0 or len(order) == 0:
            order = np.random.default_rng((config.seed, 0, epoch)).permutation(rows)
        chosen = order[position * config.batch_size :][: config.batch_size]
        seeds = np.random.default_rng((config.seed, 1, step)).integers(MAX_SEED, size=config.batch_size, endpoint=True)
        yield pixels[chosen], sample_latents(seeds, config.latent_dim)
        step += 1
