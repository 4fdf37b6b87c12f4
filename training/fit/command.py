"""A run from the command line: what is not given is chosen from photos and machine, said, and kept for resuming."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.backend import import_backend
from training.config import IMAGE_SIZES, TrainingConfig
from training.data.dataset import (
    MIN_PHOTOS,
    check_batch_size,
    check_output_folder,
    check_photo_count,
    check_run_outside_photos,
    load_run_photos,
    split_run_photos,
)
from training.data.decoding import MAX_ENLARGEMENT
from training.data.photos import measure_photos
from training.errors import ConfigError, FeatureWeightsMissing
from training.fit.plan import (
    Plan,
    StepSeconds,
    choose_discriminator,
    choose_length,
    choose_networks,
    choose_pictures,
    choose_refinement,
    expected_kid,
    in_words,
)
from training.records import read_batches_done

WORTH_MEASURING = 100  # batches; fewer are done about as soon as they are measured


def begin_or_resume(
    photos_folder: Path, run: Path, given: Mapping[str, Any], *, dry_run: bool, grow_from: Path | None = None
) -> bool:
    """Train as `given` says, and for the rest as the run began or, in a new one, as photos and machine suggest.

    What can be refused without Keras is, before the 4 s that its import takes.

    Return whether all batches are done, or whether it is a `dry_run`, which tells the plan and writes nothing.

    Raises:
        TrainingError: it cannot begin or go on; a new run has written no file then.
    """
    check_output_folder(run)
    check_run_outside_photos(photos_folder, run)
    config_file = run / "config.json"
    if config_file.exists():
        begun = TrainingConfig.from_json(config_file.read_text(encoding="utf-8"))
        config = replace(begun, **given)
        config.refuse_to_continue(begun)
        done = read_batches_done(run / "checkpoint.npz")
        if config.steps < done < begun.steps:
            raise ConfigError(
                f"--steps is {config.steps}: allowed is {done} or more, as {run} is at batch {done} of {begun.steps}."
            )
        if config.steps < done:  # as the command of before the run was extended says
            print(f"{config.steps:,} batches are done already: {run} has {done:,}, and keeps them.")
            config = replace(config, steps=done)
        print(f"{run} is at batch {done:,} of {config.steps:,}: what no flag says is as in its config.json.")
        if dry_run:
            return True
        photos = load_run_photos(photos_folder, run, config)
        split = split_run_photos(photos, run, config)
        import_backend()
        from training.fit.run import train

        return finish(train(photos, split, run, config, grow_from), run, config)

    source = None if grow_from is None else read_source(grow_from, given)
    plan = Plan(given if source is None else {"latent_dim": source.latent_dim, **given})
    grown_from_size = source.image_size if source else None
    sides = measure_photos(photos_folder, given.get("image_size", IMAGE_SIZES[0]))
    if len(sides) < MIN_PHOTOS:
        if not dry_run:
            load_run_photos(photos_folder, run, plan.config)  # which says what became of each, too
        check_photo_count(len(sides), photos_folder)
    import_backend()
    from training.fit.machine import look_at_machine
    from training.fit.run import enable_determinism, train
    from training.model.replicas import count_replicas

    machine = look_at_machine()
    plan = plan.plus(*choose_pictures(sides, machine, grown_from_size))
    plan = plan.plus(*choose_discriminator(plan.config.discriminator))
    if plan.config.discriminator == "projected":
        require_feature_weights()
    if dry_run:
        usable = sum(side * MAX_ENLARGEMENT >= plan.config.image_size for side in sides)
        check_photo_count(usable, photos_folder)
        print(f"{usable:,} photos in {photos_folder} look usable")
    else:
        photos = load_run_photos(photos_folder, run, plan.config)
        usable = len(photos.pixels)
    held_out = round(plan.config.holdout_fraction * usable)
    plan = plan.plus(*choose_networks(usable - held_out, plan.config.image_size, machine))
    check_batch_size(usable - held_out, held_out, plan.config.batch_size)
    enable_determinism(plan.config)
    step_s, estimate = None, "The line that begins with `fit:` tells how long it takes."
    # Workers that measured would measure, and choose, each otherwise.
    if count_replicas() == 1 and (dry_run or given.get("steps", WORTH_MEASURING) >= WORTH_MEASURING):
        print("Measuring how long a batch takes here ...", flush=True)
        step_s = measure_steps(plan.config)
    plan = plan.plus(choose_length(usable - held_out, plan.config, step_s, machine, grown=source is not None))
    plan = plan.plus(*choose_refinement(plan.config, grown_from_size))
    if step_s:
        seconds = step_s.of_run(plan.config.steps, plan.config.first_refining_step)
        estimate = (
            f"This takes about {in_words(seconds)}. Photos of single apples came to a KID x1000 of about "
            f"{expected_kid(plan.config):.0f} in so many batches (0 is as good as photos); varied photos end higher."
        )
    print(f"settings for {machine}")
    print(plan.table())
    print(estimate, flush=True)
    if dry_run:
        return True
    split = split_run_photos(photos, run, plan.config)
    return finish(train(photos, split, run, plan.config, grow_from), run, plan.config)


def read_source(run: Path, given: Mapping[str, Any]) -> TrainingConfig:
    """Return the configuration of the run to grow from. Raises ConfigError if no size can grow from it."""
    config_file = run / "config.json"
    for file in (config_file, run / "checkpoint.npz"):
        if not file.is_file():
            raise ConfigError(f"--grow-from {run} has no {file.name}: name the --out folder of a `fit` that has ended.")
    source = TrainingConfig.from_json(config_file.read_text(encoding="utf-8"))
    size = given.get("image_size", source.image_size)
    if size < source.image_size:
        raise ConfigError(f"--size {size} is smaller than the {source.image_size} px of {run}: choose that or more.")
    if given.get("latent_dim", source.latent_dim) != source.latent_dim:
        raise ConfigError(f"--latent-dim must be that of {run}, {source.latent_dim}.")
    return source


def require_feature_weights() -> None:
    """Raise FeatureWeightsMissing if the projected discriminator's weights are not installed."""
    from training.model.backbone import load_weights

    try:
        load_weights("lite1")
    except FeatureWeightsMissing as error:
        raise FeatureWeightsMissing(f"{error}; or train without it: --discriminator plain") from error


def measure_steps(config: TrainingConfig) -> StepSeconds:
    """Return how long a batch takes in either stage of `config`."""
    from training.fit.machine import measure_step_s

    first = measure_step_s(config)
    plain = config.discriminator == "plain"
    return StepSeconds(first, first if plain else measure_step_s(config, refining=True))


def finish(done: int, run: Path, config: TrainingConfig) -> bool:
    """Say what to do next, if all batches are done; return whether they are."""
    if done < config.steps:
        return False
    print(f"All {done:,} batches are done. Look at {run / 'progress.gif'} and {run / 'losses.png'}, then")
    print(f"  python -m training export {run} --to models/{run.name}")
    return True
