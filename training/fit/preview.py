"""What the augmentation does to photos: a sheet to look at before a training of hours."""

import io
from pathlib import Path

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.config import TrainingConfig
from training.data.photos import sample_photos
from training.errors import TrainingError
from training.model.gan import augment_images
from training.model.sampling import image_grid
from training.records import write_whole

PHOTOS, VERSIONS = 8, 7
FRAME = 225  # grey of the line around each picture: photos on white would run into each other
LABEL_HEIGHT, LABEL_SIZE, GAP = 20, 12, 8  # pixels


def preview(photos_folder: Path, to: Path, config: TrainingConfig) -> int:
    """Write the PNG `to`: up to PHOTOS photos, and right of each VERSIONS of it as the discriminator would see them.

    `config.seed` chooses the photos and what happens to them. Returns the number of photos shown.

    Raises:
        TrainingError: the folder is missing or holds no usable photo, or `to` is no place for a sheet.
    """
    if to.suffix.lower() != ".png":
        raise TrainingError(f"--out is {str(to)!r}: allowed is the name of a PNG file, such as preview.png.")
    if to.resolve().is_relative_to(photos_folder.resolve()):
        raise TrainingError(f"--out {to} lies inside --photos {photos_folder}: the sheet would become a photo.")
    photos = sample_photos(photos_folder, config.image_size, PHOTOS, seed=config.seed)
    repeated = np.repeat(photos, VERSIONS, axis=0).astype(np.float32) / 127.5 - 1.0
    seen = augment_images(config, ops.convert_to_tensor(repeated), keras.random.SeedGenerator(config.seed))
    versions = ((ops.convert_to_numpy(seen) + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    draw_sheet(photos, versions).save(file, "PNG")
    to.parent.mkdir(parents=True, exist_ok=True)
    write_whole(to, file.getvalue())
    return len(photos)


def draw_sheet(photos: NDArray[np.uint8], versions: NDArray[np.uint8]) -> Image.Image:
    """Return `photos` uint8[N, S, S, 3] in a column, and beside each its VERSIONS of `versions`, in order."""
    left, right = (
        image_grid(np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=FRAME), columns)
        for pictures, columns in ((photos, 1), (versions, VERSIONS))
    )
    sheet = Image.new("RGB", (left.width + GAP + right.width, LABEL_HEIGHT + left.height), "white")
    draw = ImageDraw.Draw(sheet)
    for part, x, label in ((left, 0, "photo"), (right, left.width + GAP, "as the discriminator sees it")):
        sheet.paste(part, (x, LABEL_HEIGHT))
        draw.text((x + 1, 2), label, fill="black", font_size=LABEL_SIZE)
    return sheet
