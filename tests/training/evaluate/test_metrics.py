"""Distances between features, and from them varieties and the verdict on copies."""

import numpy as np
import pytest

from training.data.holdout import split_photos
from training.evaluate.copies import assess_distances, measure_others
from training.evaluate.metrics import NEAREST_BATCH, find_nearest, frechet_distance, kernel_distance
from training.evaluate.varieties import find_varieties


def normal(n: int, mean: float = 0.0, deviation: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, (n, 8))


def test_frechet_distance_matches_the_formula_for_normal_sets():
    # |m1 - m2|^2 + sum (s1 - s2)^2 over 8 independent dimensions
    distance = frechet_distance(normal(200_000), normal(200_000, mean=0.5, deviation=2.0, seed=1))
    assert distance == pytest.approx(8 * 0.5**2 + 8 * 1.0**2, rel=0.02)


def test_kernel_distance_is_unbiased_when_samples_are_small():
    distances = [kernel_distance(normal(60, seed=2 * i), normal(60, seed=2 * i + 1))[0] for i in range(60)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(len(distances))


def test_nearest_rows_match_a_plain_search():
    # Far from 0, where cancellation is worst.
    points, among = normal(NEAREST_BATCH + 100) + 1000, normal(300, seed=1) + 1000
    differences = np.sqrt(((points[:, None] - among) ** 2).mean(axis=2))
    rows, distances = find_nearest(points.astype(np.float32), among.astype(np.float32))
    assert rows.tolist() == differences.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, differences.min(axis=1), rtol=1e-3)


NO_FEATURES = np.zeros((60, 2), np.float32)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Training/{kind}/{number}.jpg", "folder"),
        ("{kind}__r0_{number:03d}.jpg", "name before the double underscore"),
        ("{kind}_r1_{number:03d}.jpg", "name without number and series"),
        ("{kind}_{number}.jpg", "name without number and series"),
        ("{kind}-{number}.jpg", "name without number and series"),
    ],
)
@pytest.mark.parametrize("kinds", [("gala", "elstar"), ("apple-5", "apple-11"), ("あ", "い")])
def test_varieties_come_from_names_when_names_group_photos(name, rule, kinds):
    files = [name.format(kind=kind, number=number) for kind in kinds for number in range(30)]
    varieties = find_varieties(files, NO_FEATURES)
    assert varieties.rule == rule
    assert varieties.names.tolist() == [kind for kind in kinds for _ in range(30)]


@pytest.mark.parametrize("name", ["IMG_{:04d}.jpg", "{:x}f.png", "{}/photo.jpg", "{few}{}.jpg"])
def test_varieties_come_from_clusters_when_names_group_nothing(name):
    features = np.repeat(np.eye(6, dtype=np.float32), 10, axis=0)
    varieties = find_varieties([name.format(n, few="old/" if n < 3 else "") for n in range(60)], features)
    assert varieties.rule == "6 clusters of features"
    assert [len(set(group)) for group in np.split(varieties.names, 6)] == [1] * 6
    assert len(set(varieties.names)) == 6


def test_varieties_of_photos_beside_a_folder_have_a_name():
    files = [f"{'old/' if number < 30 else ''}{number}.jpg" for number in range(60)]
    assert set(find_varieties(files, NO_FEATURES).names) == {"old", "(no name)"}


def test_each_photo_is_compared_with_its_folder_but_not_with_its_neighbours():
    files = [f"{folder}/{number}-{seed:x}f.jpg" for folder in "abcdefghij" for number in range(10) for seed in range(3)]
    features = np.array([(10 * ord(file[0]), int(file[2])) for file in files], np.float32)
    distances = measure_others(features, split_photos(files, 0.0), files)
    np.testing.assert_allclose(distances, np.sqrt(1 / 2))  # of the next number in the same folder


FAR, NEAR = np.linspace(10, 20, 50, dtype=np.float32), np.linspace(1, 2, 50, dtype=np.float32)
SOME_CLOSE = "Some images look like copies."
VERDICTS = {
    "as far": (FAR, FAR, "good", "No sign of copying."),
    "closer": (NEAR, FAR, "bad", "The images are closer to the training photos than other photos are."),
    "as far by chance": (FAR[:25], FAR, "good", "No sign of copying."),
    "some": (np.r_[NEAR[:15], FAR[-35:]], FAR, "bad", SOME_CLOSE),
    "a few": (np.r_[NEAR[:5], FAR[-45:]], FAR, "good", "No sign of copying."),
    "some, 5 others": (np.r_[NEAR[:15], FAR[-35:]], FAR[::10], "good", "No sign of copying."),
    "more, 5 others": (np.r_[NEAR[:20], FAR[-30:]], FAR[::10], "bad", SOME_CLOSE),
}


@pytest.mark.parametrize(("generated", "others", "level", "headline"), VERDICTS.values(), ids=VERDICTS)
def test_verdict_is_bad_when_images_are_closer_than_other_photos(generated, others, level, headline):
    verdict = assess_distances(generated, others)
    assert (verdict.level, verdict.headline) == (level, headline)


def test_verdict_explains_its_numbers():
    assert assess_distances(np.r_[NEAR[:15], FAR[-35:]], FAR).explanation == (
        "Typical distance to the nearest training photo in pixels at 32x32 (0 is identical): generated 15, "
        "other photos 15; 30.0 % of the images are closer than the closest 5 % of other photos (10.5)."
    )
