"""A sheet of augmented photos, to check before training for hours."""

from pathlib import Path

import keras
import numpy as np
from keras import ops
from PIL import Image, ImageDraw

from training.config import TrainingConfig
from training.data.dataset import check_output_folder, check_outside_photos
from training.data.photos import sample_photos
from training.errors import TrainingError
from training.model.augmentation import augment
from training.model.sampling import image_grid, write_image

PHOTOS, VERSIONS = 8, 7
BORDER_GREY = 225  # of the line around each image, which separates photos with a white background
LABEL_HEIGHT, LABEL_SIZE, GAP = 20, 12, 8  # pixels


def preview(photos_folder: Path, to: Path, config: TrainingConfig) -> int:
    """Write the PNG `to`: some photos, and augmented versions of each.

    `config.seed` chooses up to PHOTOS photos and the augmentation of their VERSIONS. Returns the number of photos.
    Raises TrainingError if the photo folder has no usable photo, or `to` is not usable.
    """
    if to.suffix.lower() != ".png":
        raise TrainingError(f"--out is {str(to)!r}, not a PNG file; set it to a name such as preview.png.")
    check_output_folder(to.parent)
    check_outside_photos(photos_folder, to)
    black = config.correct_black_level
    photos = sample_photos(photos_folder, config.image_size, PHOTOS, seed=config.seed, correct_black_level=black)
    repeated = np.repeat(photos, VERSIONS, axis=0).astype(np.float32) / 127.5 - 1.0
    augmented = augment(config, ops.convert_to_tensor(repeated), keras.random.SeedGenerator(config.seed))
    versions = ((ops.convert_to_numpy(augmented) + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)
    left, right = (
        image_grid(np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=BORDER_GREY), columns)
        for images, columns in ((photos, 1), (versions, VERSIONS))
    )
    sheet = Image.new("RGB", (left.width + GAP + right.width, LABEL_HEIGHT + left.height), "white")
    for part, x, label in ((left, 0, "photo"), (right, left.width + GAP, "augmented for the discriminator")):
        sheet.paste(part, (x, LABEL_HEIGHT))
        ImageDraw.Draw(sheet).text((x + 1, 2), label, fill="black", font_size=LABEL_SIZE)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_image(to, sheet)
    return len(photos)
