"""Drawings of a run: its grids as an animation, and its networks."""

import io
from collections.abc import Collection
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw

from training.records import write_atomically

LABEL_HEIGHT = 24  # pixels
FRAME_MS, LAST_FRAME_MS = 400, 3000
MOST_FRAMES, MOST_WIDTH = 40, 512


def grids_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the batch number and path of every grid `folder`/<batch>.png, in the order of batches."""
    return sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdecimal())


def animate_grids(grids: Path, to: Path, *, keep: Collection[int]) -> None:
    """Join the grids of `grids` to the GIF `to`, each with its batch number above; the last one stays.

    Of more than MOST_FRAMES it takes the last, those of the batches `keep`, and of the others as many as fit, evenly.
    Frames are at most MOST_WIDTH pixels wide: 40 of apples on white are 6 MB, 40 of noise 12. Raises OSError.
    """
    frames = []
    for batch, path in choose_frames(grids_in(grids), keep):
        with Image.open(path) as grid:
            grid.thumbnail((MOST_WIDTH, MOST_WIDTH))
            frame = Image.new("RGB", (grid.width, grid.height + LABEL_HEIGHT), "white")
            frame.paste(grid, (0, LABEL_HEIGHT))
        ImageDraw.Draw(frame).text((6, 3), f"batch {batch}", fill="black", font_size=LABEL_HEIGHT - 8)
        # A palette for each frame by median cut, not dithered: 146 kB a frame, and white stays white. The octree takes
        # a tenth of the time, but apples show bands; dithering adds a seventh to the size, and dots to smooth skins.
        frames.append(frame.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    durations_ms = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations_ms, loop=0)
    write_atomically(to, file.getvalue())


def choose_frames(grids: list[tuple[int, Path]], keep: Collection[int]) -> list[tuple[int, Path]]:
    """Return at most MOST_FRAMES of `grids`, in order: see `animate_grids`."""
    if len(grids) <= MOST_FRAMES:
        return grids
    kept = {index for index, (batch, _) in enumerate(grids) if batch in keep}
    evenly = np.linspace(0, len(grids) - 1, MOST_FRAMES - len(kept)).round().astype(int)
    return [grids[index] for index in sorted(kept.union(evenly.tolist()))]


def draw_networks(networks: list[keras.Model], folder: Path) -> str | None:
    """Draw each network to `folder`/<name>.png with Graphviz. Returns the reason if there is no Graphviz, else None.

    Without it the same tables are written as text, <name>.txt: a missing program must not stop a training.
    """
    reason = None
    for network in networks:
        try:
            keras.utils.plot_model(
                network, str(folder / f"{network.name}.png"), show_shapes=True, show_layer_names=True, dpi=80
            )
        except ImportError:  # what Keras raises when pydot cannot find the program `dot`
            lines: list[str] = []
            network.summary(print_fn=lambda line, **_: lines.append(line))  # noqa: B023
            (folder / f"{network.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            reason = "Graphviz is not installed (no program `dot`): the networks are written as text tables."
    return reason
