"""The command `samples`: writes images of a run as PNG files."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.errors import TrainingError
from training.model.checkpoints import load_generator
from training.model.latents import MAX_SEED, slerp
from training.model.sampling import image_grid, images_from_latents, write_image

MAX_SEEDS = 1024  # a grid of 32 x 32 images of 256 px has 8192 px a side
MORPH_IMAGES = 8


def write_samples(run: Path, seeds: Sequence[int]) -> Path:
    """Write a grid, a morph and single images; return their folder."""
    generator = load_generator(run)
    images = generator.generate_images(np.array(seeds))
    pictures = {str(seed): Image.fromarray(image) for seed, image in zip(seeds, images, strict=True)}
    pictures["grid"] = image_grid(images, math.ceil(math.sqrt(len(images))))
    if seeds[0] != seeds[-1]:
        first, last = generator.sample_latents(np.array([seeds[0], seeds[-1]]))
        between = images_from_latents(generator.network, slerp(first, last, MORPH_IMAGES))
        pictures["morph"] = image_grid(between, MORPH_IMAGES)
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    (folder / "morph.png").unlink(missing_ok=True)  # of other seeds
    for name, picture in pictures.items():
        write_image(folder / f"{name}.png", picture)
    return folder


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as "7,42,100-115". Raises TrainingError for other texts."""
    terms = [re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", term.strip(), re.ASCII) for term in text.split(",")]
    ranges = [range(int(term[1]), int(term[2] or term[1]) + 1) for term in terms if term]
    is_valid = all(terms) and all(seeds and seeds[-1] <= MAX_SEED for seeds in ranges)
    if not is_valid or sum(seeds.stop - seeds.start for seeds in ranges) > MAX_SEEDS:
        raise TrainingError(
            f"--seeds is {text!r}; set it to at most {MAX_SEEDS:,} seeds from 0 to {MAX_SEED}, such as 7,42,100-115."
        )
    return [seed for seeds in ranges for seed in seeds]
