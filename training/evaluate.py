"""How good the pictures of a run are: KID and FID against photos, written where the model card quotes them."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.checkpoints import load_gan
from training.errors import TrainingError
from training.features import build_extractor
from training.metrics import frechet_distance, kernel_distance
from training.painting import paint
from training.photos import load_photos
from training.records import write_record

MIN_COUNT = 50  # fewer say nothing: KID's deviation then exceeds what separates good from bad
PAINTED_AT_ONCE = 50


def evaluate(
    run: Path, photos_folder: Path, *, count: int, memory_limit_mib: int = 2048
) -> dict[str, float | int | str]:
    """Compare seeds 0 to `count` - 1 of `run` with `count` of the photos, and write `run`/evaluation.json.

    Photos are cropped and scaled as for training, so that sharpness is compared like with like. Fewer photos than
    `count` means fewer of both: FID depends on the number. Returns what was written.

    Raises:
        TrainingError: `run` has no checkpoint, or there are fewer than MIN_COUNT photos.
    """
    gan = load_gan(run)
    photos = load_photos(
        photos_folder, gan.config.image_size, cache_dir=run / "photos", memory_limit_bytes=memory_limit_mib * 2**20
    )
    count = min(count, len(photos.pixels))
    if count < MIN_COUNT:
        raise TrainingError(f"{count} pictures of each kind are too few to compare: at least {MIN_COUNT} are needed.")
    chosen = np.sort(np.random.default_rng(0).choice(len(photos.pixels), count, replace=False))
    extract = build_extractor()
    seeds = np.arange(count)
    real, generated = [], []
    for start in tqdm(range(0, count, PAINTED_AT_ONCE), desc="evaluate", unit="batch"):
        part = slice(start, start + PAINTED_AT_ONCE)
        real.append(extract(photos.pixels[chosen[part]]))
        generated.append(extract(paint(gan.ema_generator, seeds[part])))
    features = np.concatenate(real), np.concatenate(generated)
    distance, deviation = kernel_distance(*features)
    evaluation: dict[str, float | int | str] = {
        "KID x1000": round(1000 * distance, 2),
        "standard deviation of KID x1000": round(1000 * deviation, 2),
        "FID": round(frechet_distance(*features), 2),
        "pictures of each kind": count,
        "features": "EfficientNet-Lite0, not comparable with Inception",
        "compared with": f"the folder {photos_folder.resolve().name}, {photos.summary.used:,} photos",
    }
    write_record(run / "evaluation.json", evaluation)
    return evaluation
