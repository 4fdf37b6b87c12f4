"""Which photos are held out: whole arcs of series, decided by the names alone."""

import numpy as np
import pytest

from training.data.holdout import split_photos


def frames(series: str, count: int) -> list[str]:
    return [f"{series}{number:03d}.jpg" for number in range(count)]


def held_out(files: list[str], fraction: float = 0.1) -> list[str]:
    return [files[row] for row in split_photos(files, fraction).held_out]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_each_long_series_gives_one_arc_of_the_fraction(fraction):
    for series in ("apple-5__r0_", "gala/IMG_", "あ/", "gala/"):
        files = frames(series, 200)
        numbers = np.array([files.index(name) for name in held_out(files, fraction)])
        assert len(numbers) == 200 * fraction
        beginnings = [n for n in numbers if (n - 1) % 200 not in numbers]  # an arc may run past the end
        assert len(beginnings) == 1


def test_every_photo_is_trained_on_or_held_out_never_both():
    files = frames("a_", 33) + frames("b_", 7) + ["portrait.png", "x/landscape.png"]
    split = split_photos(files, 0.2)
    assert sorted([*split.training, *split.held_out]) == list(range(len(files)))
    assert sum(arc.photos for arc in split.arcs) == len(split.held_out) == 9


def test_a_series_loses_the_same_arc_whatever_else_the_folder_holds():
    alone = held_out(frames("b_", 40))
    assert [name for name in held_out(frames("a_", 40) + frames("b_", 40)) if name.startswith("b_")] == alone


def test_series_lose_different_arcs():
    files = frames("a_", 100) + frames("b_", 100) + frames("c_", 100)
    assert len({name[2:] for name in held_out(files)}) > 20


def test_frames_are_neighbours_by_number_not_by_spelling():
    files = sorted(f"turn{number}.jpg" for number in range(120))  # turn1, turn10, turn100, turn101, ...
    numbers = sorted(int(name[4:-4]) for name in held_out(files))
    gaps = [(after - before) % 120 for before, after in zip(numbers, [*numbers[1:], numbers[0]], strict=True)]
    assert sorted(gaps) == [1] * 11 + [109]


def test_an_ending_that_all_names_share_is_no_number():
    """Fruits-360 as downloaded: r0_7_100.jpg is frame 7, and every picture has 100 pixels."""
    shipped = [f"Training/Apple/Apple 5/r0_{number}_100.jpg" for number in range(60)]
    plain = [f"Training/Apple/Apple 5/r0_{number}.jpg" for number in range(60)]
    assert len(split_photos(shipped, 0.1).arcs) == 1
    assert split_photos(shipped, 0.1).held_out.tolist() == split_photos(plain, 0.1).held_out.tolist()


def test_one_turn_dealt_out_to_two_folders_is_one_series():
    files = sorted(f"{'Test' if number % 4 == 0 else 'Training'}/Gala/{number}.jpg" for number in range(200))
    numbers = sorted(int(name.split("/")[2][:-4]) for name in held_out(files))
    assert max(np.diff([*numbers, numbers[0] + 200])) == 181
    assert len(numbers) == 20


def test_short_series_and_single_photos_give_one_arc_together():
    files = [f"{chr(97 + i)}{chr(97 + j)}.jpg" for i in range(6) for j in range(10)]  # aa.jpg, ab.jpg, ...
    split = split_photos(files, 0.1)
    assert [arc.photos for arc in split.arcs] == [6]
    assert len(split.training) == 54


def test_a_fraction_of_0_trains_on_all():
    split = split_photos(frames("a_", 60), 0.0)
    assert (len(split.training), split.arcs, split.sentence()) == (60, (), "No photo is held out.")


def test_a_handful_of_photos_may_be_too_few_to_hold_any_out():
    assert len(split_photos(["a.jpg", "b.jpg", "c.jpg"], 0.1).held_out) == 0
