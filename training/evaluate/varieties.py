"""Which kinds of things the photos show: told from their names, or else from clusters of their features."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from training.evaluate.metrics import Features, nearest

PHOTOS_EACH = 10  # on average at least: names that differ from photo to photo tell no kinds
MAX_CLUSTERS = 20
ROUNDS = 20  # of k-means; few photos change their cluster after ten

# What is left of a stem when the number of a frame and the mark of its series are gone: `apple-5__r0_017`, `gala_b12`.
SERIES_MARK = re.compile(r"([\W_]+[a-z]\d*)?[\W_]*\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Varieties:
    """The variety of every photo, and the rule that told them."""

    rule: str
    names: NDArray[np.str_]  # [N]


def find_varieties(files: Sequence[str], features: Features) -> Varieties:
    """Return the varieties of the photos named `files`, whose features are float32[N, D].

    The first rule applies that tells at least two, of PHOTOS_EACH photos or more on average: the name of the folder a
    photo lies in; its name up to a double underscore; its name without the frame's number and a series' mark such as
    `_r0`; else clusters of the features, as many as there are PHOTOS_EACH photos for, up to MAX_CLUSTERS.
    """
    paths = [PurePosixPath(file) for file in files]
    rules = {
        "folder": [path.parent.name for path in paths],
        "name before the double underscore": [path.stem.partition("__")[0] for path in paths],
        "name without number and series": [SERIES_MARK.sub("", path.stem) for path in paths],
    }
    for rule, names in rules.items():
        if 2 <= len(Counter(names)) <= len(names) / PHOTOS_EACH:
            return Varieties(rule, np.array(names))
    clusters = max(2, min(MAX_CLUSTERS, len(files) // PHOTOS_EACH))
    return Varieties(
        f"{clusters} clusters of their features",
        np.array([f"cluster {number + 1}" for number in k_means(features, clusters)]),
    )


def k_means(features: Features, clusters: int) -> NDArray[np.intp]:
    """Return the number of its cluster for each of `features` float32[N, D] (Lloyd 1982, begun as k-means++)."""
    rng = np.random.default_rng(0)
    centres = features[rng.integers(len(features), size=1)]
    for _ in range(clusters - 1):
        squared = nearest(features, centres)[1].astype(np.float64) ** 2 + 1e-12  # photos may all be alike
        centres = np.concatenate([centres, features[rng.choice(len(features), 1, p=squared / squared.sum())]])
    for _ in range(ROUNDS):
        assigned, _ = nearest(features, centres)
        centres = np.stack(
            [features[assigned == i].mean(axis=0) if (assigned == i).any() else centres[i] for i in range(clusters)]
        )
    return nearest(features, centres)[0]
