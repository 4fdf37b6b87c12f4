"""How good the pictures of a run or of a model version are, compared with photos; the model card quotes it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import check_output_folder
from training.data.holdout import Split, split_photos
from training.data.photos import Photos, load_photos
from training.errors import TrainingError
from training.evaluate.features import Extractor, build_judges, features_of_photos
from training.evaluate.generator import Painter, open_painter
from training.evaluate.metrics import Features, frechet_distance, kernel_distance, nearest
from training.evaluate.report import DataSummary, Morph, Pairs, Report, write_report
from training.evaluate.results import (
    SMALL,
    Copies,
    Coverage,
    Distances,
    Evaluation,
    Judgement,
    Nearness,
    judge_copies,
    worse,
)
from training.evaluate.varieties import find_varieties
from training.model.latents import sample_latents, slerp
from training.model.sampling import SAMPLING_BATCH
from training.records import read_curves, write_record

FIRST_SEED = 10_000  # `fit` measures seeds from 0 on
MIN_COUNT = 50  # fewer say nothing: KID's deviation then exceeds what separates good from bad
NEEDED_SHARE = 0.25  # of its share of the photos, for a variety to be covered
SEEDS_SHOWN, PAIRS_SHOWN = 100, 12
MORPHS, MORPH_PICTURES = ((0, 1), (2, 3), (4, 5), (6, 7)), 10  # not chosen, as the grid's seeds are not


def evaluate(
    model: Path,
    photos_folder: Path,
    *,
    out: Path,
    count: int = 1900,
    checkpoint: str = "best",
    networks: str = "efficientnet-lite0",
    weights: Path | None = None,
    licence: str | None = None,
    attribution: str | None = None,
    memory_limit_mib: int = 2048,
) -> Evaluation:
    """Compare `count` images of `model`, a run or version folder, with photos.

    Their seeds begin at FIRST_SEED, beyond those by which `fit` chooses the best checkpoint. `judges` are names of
    features.JUDGES, separated by commas.

    Writes `out`/evaluation.json, and `out`/report.html to be looked at. Photos are cropped and scaled as for training,
    so that sharpness is compared like with like. Fewer photos than `count` means fewer of both: FID depends on the
    number. `out` also keeps the photos' features for the next time. `licence` and `attribution` are for the page;
    without them it says what the version's card says.

    Raises:
        TrainingError: `model` is neither, `out` is a file, there are fewer than MIN_COUNT photos, or the judge's
            weights are missing.
    """
    check_output_folder(out)
    painter = open_painter(model, checkpoint)
    extract, *others = build_judges(networks, weights, image_size=painter.image_size)
    photos = load_photos(
        photos_folder, painter.image_size, cache_dir=out / "photos", memory_limit_bytes=memory_limit_mib * 2**20
    )
    count = min(count, len(photos.pixels))
    if count < MIN_COUNT:
        raise TrainingError(f"{count} pictures of each kind are too few to compare: at least {MIN_COUNT} are needed.")
    real = features_of_photos(extract, photos, out / "photos")
    seeds = np.arange(FIRST_SEED, FIRST_SEED + count)
    pictures = painter.paint(seeds)
    generated = extract(pictures, progress=True)

    split, remarks = split_of(painter, photos)
    chosen = np.sort(np.random.default_rng(0).choice(len(real), count, replace=False))
    held_out = copies = picture_pairs = held_out_pairs = None
    if split:
        held_out = compare(real[split.held_out], generated) if len(split.held_out) >= MIN_COUNT else None
        if not held_out and split.groups:
            remarks += (f"{len(split.held_out)} photos held out are too few for a KID ({MIN_COUNT} are needed).",)
        copies, picture_pairs, held_out_pairs = find_copies(photos, pictures, real, generated, split, seeds)
    evaluation = Evaluation(
        model=painter.name,
        batch=painter.batch,
        features=extract.name,
        photos=f"{photos_folder.resolve().name}, {photos.summary.used:,} photos",
        seeds=f"{seeds[0]} to {seeds[-1]}",
        against_all=compare(real[chosen], generated),
        against_held_out=held_out,
        other_judges=tuple(ask_judge(judge, photos, pictures, chosen, split, out / "photos") for judge in others),
        copies=copies,
        coverage=find_coverage(photos.files, real, generated),
        remarks=remarks,
    )
    write_record(out / "evaluation.json", asdict(evaluation))
    stated = read_statements(model / "model_card.md")
    report = Report(
        evaluation=evaluation,
        grid=painter.paint(np.arange(SEEDS_SHOWN)),
        generated=picture_pairs,
        held_out=held_out_pairs,
        morphs=paint_morphs(painter),
        losses=read_curves(model / "history.csv"),
        kid=read_curves(model / "kid.csv"),
        config=painter.config,
        data=summarise_data(
            painter,
            photos,
            split,
            licence=licence or stated.get("licence", "not stated"),
            attribution=attribution or stated.get("attribution", "not stated"),
        ),
    )
    write_report(out / "report.html", report)
    return evaluation


def read_statements(card: Path) -> dict[str, str]:
    """Return the `licence` and the `attribution` that a card states; nothing if there is no card."""
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    beginnings = {"licence": "license: ", "attribution": "- Attribution: "}
    return {
        name: line.removeprefix(beginning)
        for name, beginning in beginnings.items()
        for line in lines
        if line.startswith(beginning)
    }


def split_of(painter: Painter, photos: Photos) -> tuple[Split | None, tuple[str, ...]]:
    """Return which of `photos` the training saw, None if they are not those of the training; and remarks about it."""
    split = split_photos(photos.files, painter.config.get("holdout_fraction", 0.0))
    if painter.photos is None:
        return split, ("The version does not say which photos it was trained on: all are taken as seen.",)
    if painter.photos.get("pixels_sha256") != photos.sha256 or painter.photos.get("held_out_arcs") != [
        asdict(group) for group in split.groups
    ]:
        return None, (
            "These are not the photos of the training, or not as it read them: nothing can be said about copies.",
        )
    return split, ()


def ask_judge(
    judge: Extractor,
    photos: Photos,
    pictures: NDArray[np.uint8],
    chosen: NDArray[np.intp],
    split: Split | None,
    cache_dir: Path,
) -> Judgement:
    """Return what another judge finds: against the photos `chosen` and against those held out, if they are enough."""
    real, generated = features_of_photos(judge, photos, cache_dir), judge(pictures, progress=True)
    enough = split is not None and len(split.held_out) >= MIN_COUNT
    return Judgement(
        features=judge.name,
        against_all=compare(real[chosen], generated),
        against_held_out=compare(real[split.held_out], generated) if split is not None and enough else None,
    )


def compare(real: Features, generated: Features) -> Distances:
    """Return KID of two sets of features, and FID if they are of one size."""
    distance, deviation = kernel_distance(real, generated)
    return Distances(
        pictures=len(generated),
        photos=len(real),
        kid_x1000=round(1000 * distance, 2),
        kid_x1000_std=round(1000 * deviation, 2),
        fid=round(frechet_distance(real, generated), 2) if len(real) == len(generated) else None,
    )


def find_copies(
    photos: Photos,
    pictures: NDArray[np.uint8],
    real: Features,
    generated: Features,
    split: Split,
    seeds: NDArray[np.int64],
) -> tuple[Copies, Pairs, Pairs | None]:
    """Return the check against copying, and the closest of the pictures and of the photos held out, to be looked at.

    `real` and `generated` are the features of `photos` and `pictures`; `seeds` are those of `pictures`.
    """
    small, seen = shrink(photos.pixels), real[split.training]

    def pair(of: NDArray[np.uint8], rows: NDArray[np.intp], names: Sequence[str], compared: Features) -> Pairs:
        found, distances = nearest(compared, small[split.training])
        closest = np.argsort(distances, kind="stable")[:PAIRS_SHOWN]
        neighbours = split.training[found[closest]]
        return Pairs(
            pictures=of[rows[closest]],
            names=[names[row] for row in rows[closest]],
            nearest=photos.pixels[neighbours],
            nearest_names=[photos.files[row] for row in neighbours],
            distances=distances[closest],
            all_distances=distances,
        )

    of_generated = pair(pictures, np.arange(len(pictures)), [f"seed {seed}" for seed in seeds], shrink(pictures))
    by_features = nearest(generated, seen)[1]
    unseen = unseen_by_features = None
    if len(split.held_out):
        unseen = pair(photos.pixels, split.held_out, photos.files, small[split.held_out])
        unseen_by_features = nearest(real[split.held_out], seen)[1]
    copies = Copies(
        pictures_by_pixels=_nearness(of_generated.all_distances),
        held_out_by_pixels=_nearness(unseen.all_distances) if unseen else None,
        pictures_by_features=_nearness(by_features),
        held_out_by_features=_nearness(unseen_by_features) if unseen_by_features is not None else None,
        verdict=worse(
            judge_copies(of_generated.all_distances, unseen.all_distances if unseen else None),
            judge_copies(by_features, unseen_by_features, space="features"),
        ),
    )
    return copies, of_generated, unseen


def shrink(pictures: NDArray[np.uint8]) -> Features:
    """Return `pictures` uint8[N, S, S, 3] as float32[N, SMALL * SMALL * 3], 0 to 255, by averaging pixels."""
    n, size, _, _ = pictures.shape
    side = size // SMALL
    small = np.empty((n, SMALL, SMALL, 3), np.float32)
    for start in range(0, n, SAMPLING_BATCH):
        part = pictures[start : start + SAMPLING_BATCH].reshape(-1, SMALL, side, SMALL, side, 3)
        small[start : start + SAMPLING_BATCH] = part.mean(axis=(2, 4), dtype=np.float32)
    return small.reshape(n, -1)


def _nearness(distances: NDArray[np.float32]) -> Nearness:
    closest, median = np.quantile(distances, [0.05, 0.5])
    return Nearness(median=round(float(median), 3), closest_5_percent=round(float(closest), 3))


def find_coverage(files: tuple[str, ...], real: Features, generated: Features) -> Coverage:
    """Return which varieties of the photos the pictures show.

    The nearest photo decides because it tells a photo's own variety in 1,899 of 1,900 cases; the coverage of Naeem et
    al. (2020) asks for pictures within the distance of a photo's fifth neighbour, which among the frames of a turntable
    none reaches: 0.3 % for pictures in which all varieties but one are recognised.
    """
    varieties = find_varieties(files, real)
    shown = varieties.names[nearest(generated, real)[0]]
    names = sorted(set(varieties.names.tolist()))
    photos = {name: round(float((varieties.names == name).mean()), 4) for name in names}
    pictures = {name: round(float((shown == name).mean()), 4) for name in names}
    missing = tuple(name for name in names if pictures[name] < NEEDED_SHARE * photos[name])
    return Coverage(rule=varieties.rule, needed=NEEDED_SHARE, photos=photos, pictures=pictures, missing=missing)


def paint_morphs(painter: Painter) -> list[Morph]:
    """Return the ways between the pairs of seeds MORPHS."""
    morphs = []
    for first, last in MORPHS:
        start, end = sample_latents(np.array([first, last]), painter.latent_dim)
        morphs.append(Morph(first, last, painter.paint_latents(slerp(start, end, MORPH_PICTURES))))
    return morphs


def summarise_data(
    painter: Painter, photos: Photos, split: Split | None, *, licence: str, attribution: str
) -> DataSummary:
    """Return what became of the files of the training: of `photos`, as far as is known, where there is no record."""
    record = painter.photos or asdict(photos.summary)
    return DataSummary(
        files=record["files"],
        used=record["used"],
        skipped=record["skipped"],
        held_out=split.describe() if split else f"{record.get('held_out', 0):,} photos.",
        licence=licence,
        attribution=attribution,
    )
