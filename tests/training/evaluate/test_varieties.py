"""Which kinds of photos there are, by their names or else by their features."""

import numpy as np
import pytest

from training.evaluate.varieties import find_varieties, k_means

NOTHING = np.zeros((60, 2), np.float32)


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
def test_names_tell_the_variety(name, rule, kinds):
    files = [name.format(kind=kind, number=number) for kind in kinds for number in range(30)]
    found = find_varieties(files, NOTHING)
    assert found.rule == rule
    assert found.names.tolist() == [kind for kind in kinds for _ in range(30)]


@pytest.mark.parametrize("name", ["IMG_{:04d}.jpg", "{:x}f.png", "{}/photo.jpg"])
def test_names_that_tell_nothing_leave_it_to_clusters_of_features(name):
    features = np.repeat(np.eye(6, dtype=np.float32), 10, axis=0)
    found = find_varieties([name.format(number) for number in range(60)], features)
    assert found.rule == "6 clusters of their features"
    assert [len(set(group)) for group in np.split(found.names, 6)] == [1] * 6
    assert len(set(found.names)) == 6


def test_photos_that_are_all_alike_are_one_cluster():
    assert len(set(k_means(np.ones((40, 3), np.float32), 4))) == 1
