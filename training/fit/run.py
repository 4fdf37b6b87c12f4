"""The training of a run, which can resume at any batch."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.backend import handle_signals
from training.config import TrainingConfig, read_config
from training.data.dataset import describe_photos
from training.data.holdout import Split
from training.data.photos import Photos
from training.errors import FeatureWeightsMissing
from training.evaluate.command import quote_model_card
from training.evaluate.features import build_extractor
from training.evaluate.generator import is_version
from training.evaluate.metrics import kernel_distance
from training.evaluate.results import Coverage
from training.evaluate.varieties import Varieties, find_varieties, measure_coverage
from training.fit.callbacks import Checkpoints, Grids, History, Progress, StopOnSignal
from training.fit.folder import lock_run
from training.fit.measurements import KeepBest, MeasureQuality
from training.fit.plots import draw_network, draw_photos
from training.model.checkpoints import load_checkpoint, load_generator, save_checkpoint
from training.model.exported import load_exported
from training.model.gan import GAN, build_gan
from training.model.latents import MAX_SEED, sample_latents
from training.model.projected import STATISTICS_PHOTOS
from training.model.replicas import check_equal_shares, count_replicas, distribute_batches
from training.records import ComputeRecord, read_batches_done, read_record, write_record

KID_PHOTOS = 2_000  # their features take 20 s on two cores with AVX2
KID_SUBSETS = 10  # a fifth of those of `evaluate`, in a second; each measurement uses the same seeds and photos


def train(photos: Photos, split: Split, run: Path, config: TrainingConfig, source: Path | None = None) -> int:
    """Train until `config.steps` batches are done; return the number done.

    It is smaller than `config.steps` if a signal stopped training. Training resumes from a checkpoint in `run`. A new
    run may start from the generator of `source`, a run or an exported version.
    Raises TrainingError if the run cannot start or resume; no file in `run` is lost.
    """
    check_equal_shares(config.batch_size)
    print(split.describe())
    enable_determinism(config)
    stop = StopOnSignal()
    with lock_run(run), handle_signals(stop.on_signal):
        gan = prepare_gan(photos, split, run, config, source)
        measure_kid = build_kid(photos, split, config)
        done = train_stage(gan, photos, split, run, measure_kid, stop)
        if done == gan.last_step < config.steps and not stop.received:
            print(f"Batch {done:,}: the refining stage starts with a new discriminator.", flush=True)
            average = gan.ema_generator
            gan = build_gan(config, refining=True)
            gan.copy_generator_weights(average)
            set_feature_statistics(gan, photos, split)
            done = train_stage(gan, photos, split, run, measure_kid, stop)
    if done < config.steps:
        cause = stop.received.name if stop.received else "The model"
        print(f"{cause} stopped training at batch {done} of {config.steps}; rerun the command without --new to resume.")
    return done


def prepare_gan(photos: Photos, split: Split, run: Path, config: TrainingConfig, source: Path | None) -> GAN:
    """Return the GAN of the run's checkpoint, or a new one.

    It also writes config.json and photos.json, then the checkpoint of a new run, then drawings: a run that was killed
    has a checkpoint or nothing to lose.
    """
    config_file, checkpoint = run / "config.json", run / "checkpoint.npz"
    if config_file.exists():
        config.check_resumable(read_config(config_file))
    done, refine_from = read_batches_done(checkpoint), config.first_refining_step
    gan = build_gan(config, refining=done > refine_from or refine_from == 0)
    if checkpoint.exists():
        load_checkpoint(gan, checkpoint)
    else:
        for name in ("started_from.json", "grown_from.json"):  # of a start that was killed
            (run / name).unlink(missing_ok=True)
        if source is not None:
            network, file_name, record = load_source(source)
            gan.copy_generator_weights(network)
            write_record(run / file_name, asdict(record))
        set_feature_statistics(gan, photos, split)
    write_record(run / "photos.json", asdict(describe_photos(photos, split)))
    write_record(config_file, asdict(config))
    if not checkpoint.exists():
        save_checkpoint(gan, checkpoint)
    if not (run / "grids" / "photos.png").exists():
        draw_network(gan.generator, run)
        draw_photos(photos, split, run)
    return gan


@dataclass(frozen=True)
class ModelRecord:
    """The content of started_from.json: the model that a run started from."""

    model: str  # its name and version
    rights: dict[str, str]  # attribution and licence, from its model card


@dataclass(frozen=True)
class SourceRecord(ComputeRecord):
    """The content of grown_from.json: the run that another run grew from."""

    run: str  # its name
    batch: int  # batches done at the checkpoint
    config: TrainingConfig
    # Its own sources. Records of older runs lack them, so an equal source may differ here.
    grown_from: "SourceRecord | None" = field(default=None, compare=False)
    started_from: ModelRecord | None = field(default=None, compare=False)


def read_sources(run: Path) -> dict[str, Any]:
    """Return the records of the run and the model that `run` started from, None for a missing one."""
    files = {run / "grown_from.json": SourceRecord, run / "started_from.json": ModelRecord}
    return {file.stem: read_record(file, kind) if file.exists() else None for file, kind in files.items()}


def load_source(source: Path) -> tuple[keras.Model, str, SourceRecord | ModelRecord]:
    """Return the generator of `source`, and its record's name and content."""
    path = source.resolve()
    if is_version(source):
        model = ModelRecord(f"{path.parent.name}, version {path.name}", quote_model_card(source / "model_card.md"))
        return load_exported(source, read_record(source / "config.json", TrainingConfig)), "started_from.json", model
    trained = load_generator(source, with_selector=False)
    compute = asdict(read_record(source / "compute.json", ComputeRecord))
    run = SourceRecord(**compute, run=path.name, batch=trained.batch, config=trained.config, **read_sources(source))
    return trained.network, "grown_from.json", run


def set_feature_statistics(gan: GAN, photos: Photos, split: Split) -> None:
    """Set the projected discriminator's feature statistics from training photos."""
    if gan.config.discriminator == "projected":
        rows = np.random.default_rng((gan.config.seed, 3)).permutation(split.training)[:STATISTICS_PHOTOS]
        gan.discriminator.set_feature_statistics(photos.pixels[np.sort(rows)])


def enable_determinism(config: TrainingConfig) -> None:
    """Make TensorFlow's kernels add in a fixed order, if `config` requires it.

    Call it before any operation. XLA on a CPU is deterministic anyway, also under JAX, and Keras would not compile
    with XLA after this call.
    """
    uses_xla = config.jit_compile and count_replicas() == 1
    if config.deterministic and keras.backend.backend() == "tensorflow" and not uses_xla:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def train_stage(
    gan: GAN, photos: Photos, split: Split, run: Path, measure_kid: MeasureQuality | None, stop: StopOnSignal
) -> int:
    """Train `gan` to the end of its stage; return the batches done."""
    config, first_step = gan.config, gan.step
    checkpoints = Checkpoints(run, config.checkpoint_every_s, first_step)
    savers: list[keras.callbacks.Callback] = [checkpoints]
    if measure_kid is not None:
        savers.append(KeepBest(run, first_step, measure_kid, checkpoints))
    if first_step >= gan.last_step:
        # A kill may have interrupted the measurement of the last batch.
        keras.callbacks.CallbackList(savers, model=gan).on_train_begin()
        if first_step >= config.steps:
            print(f"{run} is at batch {first_step} already: no batch is left to train.")
        return first_step
    if first_step > gan.first_step:
        print(f"Resuming at batch {first_step}.")
    history = History(run, config.log_every, first_step)
    grids = Grids(run, config.grid_every, first_step, gan.ema_generator)
    progress = Progress(config, first_step)
    # Grids come last: if drawing fails on a full disk, rows and weights are saved already.
    callbacks = [stop, progress, history, *savers, grids]
    batches = distribute_batches(lambda: iterate_batches(photos.pixels, split.training, config, first_step))
    with closing(progress.bar):
        gan.fit(batches, steps_per_epoch=gan.last_step - first_step, shuffle=False, verbose=0, callbacks=callbacks)
    return gan.step


def build_kid(photos: Photos, split: Split, config: TrainingConfig) -> MeasureQuality | None:
    """Return a function from images to their KID and varieties.

    Images are uint8[N, S, S, 3]; it compares them with up to KID_PHOTOS training photos. Returns None if `config` turns
    KID off, or if the feature network is not installed.
    """
    if not config.keep_best:
        return None
    try:
        extract = build_extractor()
    except FeatureWeightsMissing as error:
        print(f"{error}. Without it, KID is not measured; `export --checkpoint last` takes the last checkpoint.")
        return None

    @cache
    def training_photos() -> tuple[NDArray[np.float32], Varieties]:
        rows = np.sort(np.random.default_rng((config.seed, 4)).permutation(split.training)[:KID_PHOTOS])
        features = extract(photos.pixels[rows], progress="photos")
        return features, find_varieties([photos.files[row] for row in rows], features)

    def measure(images: NDArray[np.uint8]) -> tuple[float, float, Coverage]:
        photo_features, varieties = training_photos()
        features = extract(images)
        kid, deviation = kernel_distance(photo_features, features, subsets=KID_SUBSETS)
        return kid, deviation, measure_coverage(varieties, photo_features, features)

    return measure


def iterate_batches(
    pixels: NDArray[np.uint8], rows: NDArray[np.intp], config: TrainingConfig, first_step: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield photos and latents of every batch from `first_step` on.

    Photos are uint8[batch_size, S, S, 3], latents float32[batch_size, latent_dim]. The photos are the `rows` of
    `pixels`, read on demand, because `pixels` may exceed memory. A batch depends on the seed and its number alone. Each
    epoch has a new order. Photos left over at its end wait for the next epoch.
    """
    batches_per_epoch = len(rows) // config.batch_size
    order = np.empty(0, np.intp)
    for step in count(first_step):
        epoch, position = divmod(step, batches_per_epoch)
        if position == 0 or len(order) == 0:
            order = np.random.default_rng((config.seed, 0, epoch)).permutation(rows)
        batch_rows = order[position * config.batch_size :][: config.batch_size]
        rng = np.random.default_rng((config.seed, 1, step))
        latent_seeds = rng.integers(MAX_SEED, size=config.batch_size, endpoint=True)
        yield pixels[batch_rows], sample_latents(latent_seeds, config.latent_dim)
