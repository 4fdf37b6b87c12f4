"""Drawings about a run: the curves of its losses, its grids in motion, and its networks."""

from pathlib import Path

import keras
from PIL import Image, ImageDraw

from training.records import read_curves

LABEL_HEIGHT = 24  # pixels
FRAME_MS, LAST_FRAME_MS = 400, 3000


def plot_losses(history: Path, to: Path) -> None:
    """Draw the columns of `history` (a CSV file with step, g_loss, d_loss, d_real, d_generated) to the PNG `to`."""
    from matplotlib.figure import Figure  # 0.5 s, and no global state: pyplot would keep every figure

    curves = read_curves(history)
    if not curves:
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    labels = {
        "g_loss": "generator",
        "d_loss": "discriminator",
        "d_real": "D(real)",
        "d_generated": "D(generated)",
    }
    for panel, names, title in (
        (panels[0], ("g_loss", "d_loss"), "loss"),
        (panels[1], ("d_real", "d_generated"), "probability of being real"),
    ):
        for name in names:
            panel.plot(curves["step"], curves[name], label=labels[name], linewidth=1)
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
        panel.legend()
    panels[1].set_xlabel("batch")
    figure.savefig(to, dpi=110)


def animate_grids(grids: Path, to: Path) -> None:
    """Join the pictures `grids`/<batch>.png to the GIF `to`, each with its batch number above; the last one stays."""
    frames = []
    for path in sorted(grids.glob("*.png")):
        with Image.open(path) as grid:
            frame = Image.new("RGB", (grid.width, grid.height + LABEL_HEIGHT), "white")
            frame.paste(grid, (0, LABEL_HEIGHT))
        ImageDraw.Draw(frame).text((6, 3), f"batch {int(path.stem)}", fill="black", font_size=LABEL_HEIGHT - 8)
        frames.append(frame)
    durations_ms = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(to, save_all=True, append_images=frames[1:], duration=durations_ms, loop=0)


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
