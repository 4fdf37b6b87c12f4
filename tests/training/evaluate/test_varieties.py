"""Varieties of photos, by names or by features."""

import numpy as np
import pytest

from training.evaluate.varieties import find_varieties, k_means

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


@pytest.mark.parametrize("name", ["IMG_{:04d}.jpg", "{:x}f.png", "{}/photo.jpg"])
def test_varieties_come_from_clusters_when_names_group_nothing(name):
    features = np.repeat(np.eye(6, dtype=np.float32), 10, axis=0)
    varieties = find_varieties([name.format(number) for number in range(60)], features)
    assert varieties.rule == "6 clusters of features"
    assert [len(set(group)) for group in np.split(varieties.names, 6)] == [1] * 6
    assert len(set(varieties.names)) == 6


def test_varieties_come_from_clusters_when_a_few_photos_are_in_a_subfolder():
    files = [f"{'old/' if number < 3 else ''}{number}.jpg" for number in range(60)]
    assert find_varieties(files, NO_FEATURES).rule == "6 clusters of features"


def test_k_means_gives_one_cluster_when_all_photos_are_equal():
    assert len(set(k_means(np.ones((40, 3), np.float32), 4))) == 1
