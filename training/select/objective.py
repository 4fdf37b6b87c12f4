"""Training of a selector: few images unlike all photos, but the same variety."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from tqdm import tqdm

from training.evaluate.metrics import Features
from training.model.selector import CANDIDATES, Selector
from training.terminal import progress_interval_s

WIDTHS = (128, 64)  # 64 and 32 have 1.3 times the KID at equal faults; 256 and 128 gain nothing
TEMPERATURE = 0.3  # of the softmax that stands for the highest score
STEPS = 600
GROUPS = 256  # seeds per step, each with CANDIDATES latents
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
KERNEL_ROWS = 4096  # at once


def train_selector(
    latents: NDArray[np.float32],
    features: Features,
    faultiness: NDArray[np.float32],
    photo_features: Features,
    *,
    weight: float,
) -> Selector:
    """Return a selector for the generator that gave `latents` [N, D] their `features` [N, F].

    It minimises KID x1000 between photos and chosen images, which keeps all varieties, plus `weight` times the mean
    `faultiness` [N] of the chosen images. A softmax over the candidates of each seed stands for the choice.
    """
    network = keras.Sequential([keras.Input(latents.shape[1:])])
    for seed, width in enumerate(WIDTHS):
        network.add(layers.Dense(width, "relu", kernel_initializer=keras.initializers.GlorotUniform(seed)))
    network.add(layers.Dense(1, kernel_initializer="zeros"))
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, STEPS)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY)

    def loss(targets: Any, scores: Any) -> Any:
        shares = ops.reshape(ops.softmax(ops.reshape(scores, (GROUPS, CANDIDATES)) / TEMPERATURE), (-1,)) / GROUPS
        image_features, similarity, fault = targets[:, :-2], targets[:, -2], targets[:, -1]
        similarities = kernel(image_features, image_features) * other_seeds
        among_images = ops.sum(shares * ops.matmul(similarities, shares)) * GROUPS / (GROUPS - 1)
        kid = 1000.0 * (among_images - 2.0 * ops.sum(shares * similarity))  # without a constant of the photos
        return kid + weight * ops.sum(shares * fault)

    group = np.arange(GROUPS * CANDIDATES) // CANDIDATES
    other_seeds = (group[:, None] != group).astype(np.float32)
    network.compile(optimizer, loss)
    similarity = np.concatenate(
        [
            ops.convert_to_numpy(ops.mean(kernel(features[i : i + KERNEL_ROWS], photo_features), axis=1))
            for i in range(0, len(features), KERNEL_ROWS)
        ]
    )
    targets = np.column_stack([features, similarity, faultiness])
    rng = np.random.default_rng(0)
    for _ in tqdm(range(STEPS), "select: training", unit="step", mininterval=progress_interval_s()):
        rows = rng.integers(len(latents), size=GROUPS * CANDIDATES)
        network.train_on_batch(latents[rows], targets[rows])
    return Selector.from_weights(network.get_weights())


def kernel(x: Any, y: Any) -> Any:
    """Return KID's kernel (Binkowski et al. 2018, section 4.1) of x [N, F] and y [M, F], as [N, M]."""
    return (ops.matmul(x, ops.transpose(y)) / x.shape[1] + 1.0) ** 3
