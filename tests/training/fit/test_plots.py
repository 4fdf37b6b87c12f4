"""When grids are drawn, and their animation."""

import numpy as np
from PIL import Image, ImageSequence

from training.fit.callbacks import Grids
from training.fit.plots import LABEL_HEIGHT, MAX_FRAMES, MAX_WIDTH, MILESTONES, animate_grids
from training.model.networks import build_generator


def save_grids(folder, batches, size=(16, 16)) -> None:
    """Save one grid per batch; its colour encodes the batch."""
    folder.mkdir()
    for batch in batches:
        Image.new("RGB", size, (batch // 256 % 256, batch % 256, 60)).save(folder / f"{batch:07d}.png")


def read_batches(gif) -> list[int]:
    with Image.open(gif) as animation:
        pixels = [frame.convert("RGB").getpixel((3, LABEL_HEIGHT + 3)) for frame in ImageSequence.Iterator(animation)]
    return [256 * high + low for high, low, _ in pixels]


def test_gif_shows_40_grids_when_the_run_is_long(tmp_path):
    save_grids(tmp_path / "grids", {*range(0, 60_000, 70), *MILESTONES, 60_001})
    animate_grids(tmp_path)
    shown_batches = read_batches(tmp_path / "progress.gif")
    assert MAX_FRAMES - len(MILESTONES) <= len(shown_batches) <= MAX_FRAMES
    assert shown_batches[-1] == 60_001
    assert set(MILESTONES) <= set(shown_batches)
    assert max(np.diff(shown_batches)) < 2 * 60_000 / MAX_FRAMES


def test_gif_leaves_out_grids_that_cannot_be_opened(tmp_path):
    grids, gif = tmp_path / "grids", tmp_path / "progress.gif"
    save_grids(grids, [0, 1])
    for damaged in (b"", (grids / "0000001.png").read_bytes()[:60]):
        (grids / "0000000.png").write_bytes(damaged)
        animate_grids(tmp_path)
        assert read_batches(gif) == [1]
    gif.unlink()
    (grids / "0000001.png").write_bytes(damaged)
    animate_grids(tmp_path)
    assert not gif.exists()  # no grid can be opened


def test_gif_frames_are_scaled_down_when_grids_are_large(tmp_path):
    save_grids(tmp_path / "grids", [0, 1], size=(1024, 1024))
    animate_grids(tmp_path)
    with Image.open(tmp_path / "progress.gif") as animation:
        assert animation.size == (MAX_WIDTH, MAX_WIDTH + LABEL_HEIGHT)
        first_ms = animation.info["duration"]
        animation.seek(1)
        assert animation.info["duration"] > first_ms


def simulate(folder, first_step: int, last_step: int, every: int = 1000) -> list[int]:
    """Simulate the batches of a run; return those with a grid."""
    grids = Grids(folder, every, first_step, build_generator(4, (8, 8)))
    grids.on_train_begin()
    for batch in range(first_step, last_step):
        grids.on_train_batch_end(batch)
    grids.on_train_end()
    return sorted(int(path.stem) for path in (folder / "grids").iterdir())


def test_milestones_have_a_grid_when_grids_are_rare(tmp_path):
    assert simulate(tmp_path, 0, 5001, every=10**6) == [0, 2500, 5000, 5001]


def test_later_grids_are_removed_and_a_missing_one_drawn_on_resume(tmp_path):
    simulate(tmp_path, 0, 2700)
    (tmp_path / "grids" / "0002000.png").unlink()
    assert simulate(tmp_path, 2000, 2001) == [0, 1000, 2000, 2001]


def test_gif_is_updated_when_the_number_of_grids_doubles(tmp_path):
    grids = Grids(tmp_path, 10, 0, build_generator(4, (8, 8)))
    grids.on_train_begin()
    frames = {}
    for batch in range(50):
        grids.on_train_batch_end(batch)
        if grids.step % 10 == 0:
            frames[grids.step] = len(read_batches(tmp_path / "progress.gif"))
    assert frames == {10: 2, 20: 3, 30: 3, 40: 5, 50: 5}
