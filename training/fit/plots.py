"""Drawings of a run: its grids as an animation, and a network."""

from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw

from training.data.holdout import Split
from training.data.photos import Photos
from training.model.sampling import image_grid, write_image
from training.records import open_atomically, write_atomically

LABEL_HEIGHT = 24  # pixels
FRAME_MS, LAST_FRAME_MS = 400, 3000
GRID_IMAGES = 64
MAX_FRAMES, MAX_WIDTH = 40, 512
MILESTONES = (0, 2500, 5000)  # batches with a grid in every run, regardless of `grid_every`


def list_grids(folder: Path) -> list[tuple[int, Path]]:
    """Return batch number and path of every grid, sorted by batch. Grids are `folder`/<batch>.png."""
    return sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdecimal())


def animate_grids(run: Path) -> None:
    """Write the grids as progress.gif, each labelled with its batch.

    The last frame is shown longest. If there are more than MAX_FRAMES grids, it takes the last one, those at
    MILESTONES, and others at equal intervals. Grids that cannot be read are left out; if no grid remains, it writes
    nothing. Frames are at most MAX_WIDTH pixels wide: 40 frames of apples on white have 6 MB, 40 of noise 12 MB. Raises
    OSError.
    """
    paths, frames = list_grids(run / "grids"), []
    if len(paths) > MAX_FRAMES:
        required = {index for index, (batch, _) in enumerate(paths) if batch in MILESTONES}
        others = np.linspace(0, len(paths) - 1, MAX_FRAMES - len(required)).round().astype(int)
        paths = [paths[index] for index in sorted(required.union(others.tolist()))]
    for batch, path in paths:
        try:
            with Image.open(path) as grid:
                grid.thumbnail((MAX_WIDTH, MAX_WIDTH))
                frame = Image.new("RGB", (grid.width, grid.height + LABEL_HEIGHT), "white")
                frame.paste(grid, (0, LABEL_HEIGHT))
        except (OSError, SyntaxError, ValueError):  # Pillow's errors for damaged files
            continue
        ImageDraw.Draw(frame).text((6, 3), f"batch {batch}", fill="black", font_size=LABEL_HEIGHT - 8)
        # Each frame has a palette by median cut, not dithered: 146 kB, and white stays white. An octree takes a tenth
        # of the time, but apples show bands. Dithering adds a seventh to the size, and dots to smooth surfaces.
        frames.append(frame.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    if not frames:
        return
    durations_ms = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with open_atomically(run / "progress.gif") as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations_ms, loop=0)


def draw_photos(photos: Photos, split: Split, run: Path) -> None:
    """Write grids/photos.png: GRID_IMAGES training photos, to compare with."""
    path = run / "grids" / "photos.png"
    path.parent.mkdir(exist_ok=True)
    rows = np.random.default_rng(0).permutation(split.training)[:GRID_IMAGES]
    write_image(path, image_grid(photos.pixels[np.sort(rows)], columns=8))


def draw_network(network: keras.Model, folder: Path) -> None:
    """Draw `network` to <name>.png, or write <name>.txt without Graphviz."""
    try:
        path = str(folder / f"{network.name}.png")
        keras.utils.plot_model(network, path, show_shapes=True, show_layer_names=True, dpi=80)
    except (ImportError, AssertionError, OSError):  # pydot finds no program `dot`, or this program fails
        lines: list[str] = []
        network.summary(print_fn=lambda line, **_: lines.append(line))
        write_atomically(folder / f"{network.name}.txt", "\n".join(lines) + "\n")
        print(f"Graphviz is missing or fails: wrote {network.name}.txt instead of {network.name}.png.")
