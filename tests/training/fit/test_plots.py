"""The grids of a run in motion, and when they are painted."""

import numpy as np
import pytest
from PIL import Image

from training.fit.callbacks import MILESTONES, Grids
from training.fit.plots import LABEL_HEIGHT, MOST_FRAMES, MOST_WIDTH, animate_grids
from training.model.networks import build_generator


def save_grids(folder, batches, size=(16, 16)) -> None:
    """One grid a batch, whose colour says which."""
    folder.mkdir()
    for batch in batches:
        Image.new("RGB", size, (batch // 256 % 256, batch % 256, 60)).save(folder / f"{batch:07d}.png")


def batches_in(gif) -> list[int]:
    """The batches whose grids a GIF shows."""
    shown = []
    with Image.open(gif) as animation:
        for index in range(animation.n_frames):
            animation.seek(index)
            high, low, _ = animation.convert("RGB").getpixel((3, LABEL_HEIGHT + 3))
            shown.append(256 * high + low)
    return shown


def test_a_short_run_shows_every_grid_in_order(tmp_path):
    save_grids(tmp_path / "grids", [0, 500, 2500, 5000])
    (tmp_path / "grids" / "notes.png").touch()
    animate_grids(tmp_path / "grids", tmp_path / "progress.gif", keep=MILESTONES)
    assert batches_in(tmp_path / "progress.gif") == [0, 500, 2500, 5000]


def test_a_long_run_shows_40_grids_evenly_with_the_milestones_and_the_last(tmp_path):
    batches = {*range(0, 60_000, 70), *MILESTONES, 60_001}
    save_grids(tmp_path / "grids", batches)
    animate_grids(tmp_path / "grids", tmp_path / "progress.gif", keep=MILESTONES)
    shown = batches_in(tmp_path / "progress.gif")
    assert MOST_FRAMES - len(MILESTONES) <= len(shown) <= MOST_FRAMES
    assert shown[-1] == 60_001
    assert set(MILESTONES) <= set(shown)
    assert max(np.diff(shown)) < 2 * 60_000 / MOST_FRAMES


def test_the_frames_of_large_pictures_are_scaled_down_and_the_last_one_stays(tmp_path):
    save_grids(tmp_path / "grids", [0, 1], size=(1024, 1024))
    animate_grids(tmp_path / "grids", tmp_path / "progress.gif", keep=())
    with Image.open(tmp_path / "progress.gif") as animation:
        assert animation.size == (MOST_WIDTH, MOST_WIDTH + LABEL_HEIGHT)
        first_ms = animation.info["duration"]
        animation.seek(1)
        assert animation.info["duration"] > first_ms


@pytest.fixture(scope="module")
def generator():
    return build_generator(4, (8, 8))


def run(folder, generator, first_step: int, last_step: int, every: int = 1000) -> list[int]:
    """Go through the batches of a run, or of a part of it; return those that have a grid."""
    grids = Grids(folder, every, first_step, generator)
    grids.on_train_begin()
    for batch in range(first_step, last_step):
        grids.on_train_batch_end(batch)
    grids.on_train_end()
    return sorted(int(path.stem) for path in (folder / "grids").iterdir())


def test_batches_0_2500_and_5000_have_a_grid_however_rare_grids_are(tmp_path, generator):
    assert run(tmp_path, generator, 0, 5001, every=10**6) == [0, 2500, 5000, 5001]


def test_what_a_killed_run_drew_past_its_last_checkpoint_is_gone(tmp_path, generator):
    run(tmp_path, generator, 0, 2700)
    assert run(tmp_path, generator, 1999, 2001) == [0, 1000, 2000, 2001]


def test_a_grid_that_a_kill_has_left_out_is_painted_when_the_run_resumes(tmp_path, generator):
    run(tmp_path, generator, 0, 2500)
    (tmp_path / "grids" / "0002500.png").unlink()
    assert run(tmp_path, generator, 2500, 2600) == [0, 1000, 2000, 2500, 2600]


def test_the_gif_is_there_before_the_training_ends_and_follows_each_doubling(tmp_path, generator):
    grids = Grids(tmp_path, 10, 0, generator)
    grids.on_train_begin()
    frames = {}
    for batch in range(50):
        grids.on_train_batch_end(batch)
        if grids.step % 10 == 0:
            with Image.open(tmp_path / "progress.gif") as animation:
                frames[grids.step] = animation.n_frames
    assert frames == {10: 2, 20: 3, 30: 3, 40: 5, 50: 5}
