"""The command `fit`: start a run, or resume it with its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.backend import import_backend
from training.config import IMAGE_SIZES, TrainingConfig, read_config
from training.data.dataset import (
    MIN_PHOTOS,
    check_batch_size,
    check_output_folder,
    check_outside_photos,
    check_photo_count,
    load_run_photos,
    split_run_photos,
)
from training.data.decoding import MAX_ENLARGEMENT, has_grey_shadows
from training.data.photos import measure_photos
from training.errors import ConfigError, FeatureWeightsMissing
from training.fit.folder import check_complete, check_no_input_inside, check_no_runs_inside, set_aside
from training.fit.plan import (
    Machine,
    Plan,
    Start,
    choose_discriminator,
    choose_image_size,
    choose_length,
    choose_networks,
    choose_refinement,
    expected_kid,
    format_duration,
    mean_step_s,
)
from training.names import model_name
from training.records import read_batches_done, read_record
from training.terminal import python_command

FEW_PHOTOS = 300
FEW_PHOTOS_ADVICE = (
    "images may become copies of them; `evaluate` checks for copies. Add photos, or start from the bundled model with "
    "--from models/apple."
)
BLACK_LEVEL_SAMPLE, MAX_GREY_SHARE = 1000, 0.01  # 7 % such photos of apples made 6 % of the images grey
Flags = Mapping[str, Any]  # the settings from the command line
MIN_MEASURED_STEPS = 100  # a measurement takes about as long as this number of batches


def fit(
    photos_folder: Path,
    run: Path,
    flags: Flags,
    *,
    dry_run: bool,
    new: bool = False,
    grow_from: Path | None = None,
    from_model: Path | None = None,
) -> bool:
    """Train until all batches are done; return whether they are.

    A signal can stop training earlier. A `dry_run` prints the plan, writes no file and returns True. A `new` run starts
    over: it renames the folder of an existing one. Checks that need no Keras come before its import, which takes 4 s.
    Raises TrainingError if the run cannot start or resume. A new run has written no file.
    """
    check_output_folder(run)
    check_outside_photos(photos_folder, run)
    check_no_runs_inside(run)
    if grow_from is not None and from_model is not None:
        raise ConfigError("--from and --grow-from exclude each other; choose one of them.")
    source = grow_from if from_model is None else _find_version(from_model)
    start = None if source is None else _read_start(source, flags, from_model=from_model is not None)
    if new:
        check_no_input_inside(run, filter(None, (photos_folder, source, Path.cwd())))
    else:
        check_complete(run)
        if (run / "config.json").exists():
            return _resume(photos_folder, run, flags, dry_run=dry_run, source=source)
    return _start(photos_folder, run, flags, dry_run=dry_run, new=new, source=source, start=start)


def _resume(photos_folder: Path, run: Path, flags: Flags, *, dry_run: bool, source: Path | None) -> bool:
    previous = read_config(run / "config.json")
    config = replace(previous, **flags)
    config.check_resumable(previous)
    done = read_batches_done(run / "checkpoint.npz")
    if config.steps < done:
        raise ConfigError(
            f"steps is {config.steps}, but {run} is at batch {done} of {previous.steps}; set it to {done} or more."
        )
    if source is not None and (run / "checkpoint.npz").exists():
        import_backend()
        from training.fit.run import enable_determinism, load_source

        enable_determinism(config)
        _, file_name, record = load_source(source)
        if not (run / file_name).exists() or read_record(run / file_name, type(record)) != record:
            raise ConfigError(f"{run} did not start from {source}; leave the flag out, or start over with --new.")
    print(f"{run} is at batch {done:,} of {config.steps:,}. Settings without a flag come from its config.json.")
    if dry_run:
        return True
    photos = load_run_photos(photos_folder, run, config)
    split = split_run_photos(photos, run, config)
    import_backend()
    from training.fit.run import train

    return _report_end(train(photos, split, run, config, source), run, config)


def _start(
    photos_folder: Path, run: Path, flags: Flags, *, dry_run: bool, new: bool, source: Path | None, start: Start | None
) -> bool:
    plan = Plan(flags if start is None else {"latent_dim": start.config.latent_dim, **flags})
    sides = measure_photos(photos_folder, flags.get("image_size", IMAGE_SIZES[0]))
    if len(sides) < MIN_PHOTOS and not dry_run:
        load_run_photos(photos_folder, run, plan.config)  # prints the skipped files before it raises
    check_photo_count(len(sides), photos_folder)
    import_backend()
    from training.fit.machine import detect_machine
    from training.fit.run import enable_determinism, load_source, train
    from training.model.replicas import check_equal_shares

    machine = detect_machine()
    plan = plan.with_choices(*choose_image_size(sides, machine, start))
    plan = plan.with_choices(*choose_discriminator(plan.config.discriminator))
    if plan.config.r1_gamma > 0 and plan.config.discriminator != "plain":
        raise ConfigError("--r1-gamma is for the plain discriminator; leave it out, or set --discriminator plain.")
    _check_feature_weights(plan.config)
    photos = None if dry_run else load_run_photos(photos_folder, run, plan.config)
    usable = len(photos.pixels) if photos else _count_usable(sides, plan.config.image_size, photos_folder)
    held_out = round(plan.config.holdout_fraction * usable)
    training = usable - held_out
    plan = plan.with_choices(*choose_networks(training, plan.config.image_size, machine, start))
    check_batch_size(training, held_out, plan.config.batch_size)
    check_equal_shares(plan.config.batch_size)
    enable_determinism(plan.config)
    if source is not None:
        load_source(source)  # raises before a file is written
    is_refining = flags.get("refine_from", 0 if start else 1) == 0
    step_s = _measure_step(plan.config, flags, dry_run=dry_run, refining=is_refining)
    plan = plan.with_choices(choose_length(training, plan.config, step_s, machine, start))
    plan = plan.with_choices(*choose_refinement(plan.config, start))
    _print_plan(plan, machine, step_s, start)
    if training < FEW_PHOTOS and start is None:
        print(f"{training} photos are few: {FEW_PHOTOS_ADVICE}", flush=True)
    if photos is None:
        return True
    if "correct_black_level" not in flags:
        _advise_on_black_levels(photos.pixels)
    split = split_run_photos(photos, run, plan.config, new=new)
    if new:
        set_aside(run)
    return _report_end(train(photos, split, run, plan.config, source), run, plan.config)


def _advise_on_black_levels(photos: NDArray[np.uint8]) -> None:
    """Advise --correct-black-level if too many photos have grey shadows."""
    rows = np.random.default_rng(0).permutation(len(photos))[:BLACK_LEVEL_SAMPLE]
    if (share := sum(has_grey_shadows(photos[row]) for row in np.sort(rows)) / len(rows)) > MAX_GREY_SHARE:
        print(
            f"About {share:.0%} of the photos have no black pixels, only grey ones. If stray light or the camera made "
            "them grey, add --correct-black-level, or some images may look like grey glass.",
            flush=True,
        )


def _find_version(model: Path) -> Path:
    """Return the newest version in the folder `model`, or `model` itself."""
    versions = [path.parent for path in model.glob("*/saved_model.pb") if path.parent.name.isdecimal()]
    return max(versions, key=lambda path: int(path.name), default=model)


def _read_start(source: Path, flags: Flags, *, from_model: bool) -> Start:
    """Return the start from `source`; raise ConfigError if `flags` do not fit."""
    flag, weights = ("--from", "saved_model.pb") if from_model else ("--grow-from", "checkpoint.npz")
    remedy = "a model that `export` wrote" if from_model else "the --out folder of a finished `fit`"
    for name in ("config.json", weights):
        if not (source / name).is_file():
            raise ConfigError(f"{flag} {source} has no {name}; set it to {remedy}.")
    # Older versions lack newer settings.
    config = read_record(source / "config.json", TrainingConfig) if from_model else read_config(source / "config.json")
    size = flags.get("image_size", config.image_size)
    if size < config.image_size and not from_model:
        raise ConfigError(
            f"--size {size} is smaller than the {config.image_size} px of {source}; "
            f"set it to {config.image_size} or more."
        )
    for name in ("latent_dim", "preset"):
        value, start_value = flags.get(name, getattr(config, name)), getattr(config, name)
        if value != start_value:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, but {source} has {start_value}; set it to that.")
    return Start(config, from_model)


def _check_feature_weights(config: TrainingConfig) -> None:
    if config.discriminator != "projected":
        return
    from training.model.backbone import load_weights

    try:
        load_weights("lite1")
    except FeatureWeightsMissing as error:
        raise FeatureWeightsMissing(f"{error}, or train without it by --discriminator plain.") from error


def _count_usable(sides: Sequence[int], image_size: int, photos_folder: Path) -> int:
    """Print and return the number of photos of sufficient size."""
    usable = sum(side * MAX_ENLARGEMENT >= image_size for side in sides)
    check_photo_count(usable, photos_folder)
    print(f"{usable:,} photos in {photos_folder} appear usable")
    return usable


def _measure_step(config: TrainingConfig, flags: Flags, *, dry_run: bool, refining: bool) -> float | None:
    """Return the seconds of an early batch, None if not measured."""
    from training.fit.machine import measure_step_s
    from training.model.replicas import count_replicas

    is_short = not dry_run and flags.get("steps", MIN_MEASURED_STEPS) < MIN_MEASURED_STEPS
    if is_short or count_replicas() > 1:  # the measurements of several workers could differ
        return None
    print("Measuring the time of a batch ...", flush=True)
    return measure_step_s(config, refining=refining and config.discriminator != "plain")


def _print_plan(plan: Plan, machine: Machine, step_s: float | None, start: Start | None) -> None:
    print(f"settings for {machine}")
    print(plan.format_table())
    if step_s is None:
        print("The progress line `fit:` shows the remaining time.", flush=True)
        return
    config = plan.config
    seconds = config.steps * mean_step_s(step_s, config.first_refining_step / config.steps)
    print(f"This takes about {format_duration(seconds)}.", flush=True)
    if start is None and (kid := expected_kid(config)):
        print(f"Photos of single apples reach a KID x1000 of about {kid} (0 is as good as photos);", end=" ")
        print("more varied photos end higher.", flush=True)


def _report_end(done: int, run: Path, config: TrainingConfig) -> bool:
    """Return whether all batches are done; if so, print the next command."""
    from training.model.replicas import is_chief

    if done < config.steps:
        return False
    if not is_chief():
        print(f"All {done:,} batches are done; worker 0 has the files.")
        return True
    pictures = " and ".join(str(run / name) for name in ("progress.gif", "losses.png") if (run / name).exists())
    print(f"All {done:,} batches are done. Check {pictures}, then export:")
    print(" ", python_command("-m", "training", "export", run, "--to", f"models/{model_name(run)}"))
    return True
