"""Held-out photos: groups of consecutive photos, chosen by names alone."""

import pytest

from training.data.holdout import split_photos


def name_frames(series: str, count: int) -> list[str]:
    return [f"{series}{number:03d}.jpg" for number in range(count)]


def list_held_out(files: list[str], fraction: float = 0.1) -> list[str]:
    return [files[row] for row in split_photos(files, fraction).held_out]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
@pytest.mark.parametrize(
    "name",
    [
        "apple-5__r0_{:03d}.jpg",
        "あ/{:03d}.jpg",
        "turn{}.jpg",  # sorted as turn1, turn10, turn100, turn101, ...
        "Training/Apple/Apple 5/r0_{}_100.jpg",  # in Fruits-360, frame 7 of an image of 100 pixels is r0_7_100.jpg
        "{folder}/Gala/{}.jpg",  # a series that is split over two folders
    ],
)
def test_series_gives_one_group_of_consecutive_frames(name, fraction):
    numbers = {name.format(n, folder="Training" if n % 4 else "Test"): n for n in range(200)}
    frames = [numbers[file] for file in list_held_out(sorted(numbers), fraction)]
    assert len(frames) == 200 * fraction
    assert len([n for n in frames if (n - 1) % 200 not in frames]) == 1  # a group may continue at the beginning


def test_every_photo_is_either_trained_on_or_held_out():
    files = name_frames("a_", 33) + name_frames("b_", 7) + ["portrait.png", "x/landscape.png"]
    split = split_photos(files, 0.2)
    assert sorted([*split.training, *split.held_out]) == list(range(len(files)))
    assert [group.photos for group in split.groups] == [7, 2]  # short series and single photos share one group
    assert len(split.held_out) == 9


def test_each_series_has_its_own_group():
    held_out = list_held_out(name_frames("a_", 100) + name_frames("b_", 100) + name_frames("c_", 100))
    assert [name for name in held_out if name.startswith("b_")] == list_held_out(name_frames("b_", 100))
    assert len({name[2:] for name in held_out}) > 20


def test_each_folder_has_its_own_group_when_names_do_not_end_with_a_number():
    folders = [f"class{number}/" for number in range(20)]
    held_out = list_held_out([f"{folder}{n}{'abc'[n % 3]}.jpg" for folder in folders for n in range(50)])
    assert [sum(file.startswith(folder) for file in held_out) for folder in folders] == [5] * 20


@pytest.mark.parametrize(("count", "fraction"), [(60, 0.0), (3, 0.1)])
def test_no_photo_is_held_out_when_fraction_or_photos_are_few(count, fraction):
    split = split_photos(name_frames("a_", count), fraction)
    assert (len(split.training), split.groups, split.describe()) == (count, (), "No photo is held out.")
