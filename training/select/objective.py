"""Training of a selector: few images unlike all photos, but the same variety."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from tqdm import tqdm

from training.errors import TrainingError
from training.evaluate.metrics import Features
from training.model.selector import CANDIDATES, Selector
from training.terminal import progress_interval_s

WIDTHS = (128, 64)  # 64 and 32 give a KID of 4.1 instead of 3.4
TEMPERATURE = 0.3  # of the softmax that stands for the highest score
STEPS = 600
GROUPS = 256  # seeds per step, each with CANDIDATES latents
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
KERNEL_ROWS = 4096  # at once


def train_selector(
    latents: NDArray[np.float32],
    features: Features,
    anomaly_scores: NDArray[np.float32],
    photo_features: Features,
    *,
    weight: float,
) -> Selector:
    """Return a selector of `latents` [N, D], whose images have `features` [N, F] and `anomaly_scores` [N].

    It minimises KID x1000 between photos and chosen images, which keeps all varieties, plus `weight` times the mean
    anomaly score of the chosen images. A softmax over the candidates of each seed stands for the choice.
    Raises TrainingError if the training diverges.
    """
    network = keras.Sequential([keras.Input(latents.shape[1:])])
    for seed, width in enumerate(WIDTHS):
        network.add(layers.Dense(width, "relu", kernel_initializer=keras.initializers.GlorotUniform(seed)))
    network.add(layers.Dense(1, kernel_initializer="zeros"))
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, STEPS)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY)

    def loss(targets: Any, scores: Any) -> Any:
        probabilities = (
            ops.reshape(ops.softmax(ops.reshape(scores, (GROUPS, CANDIDATES)) / TEMPERATURE), (-1,)) / GROUPS
        )
        image_features, mean_kernel, anomaly_score = targets[:, :-2], targets[:, -2], targets[:, -1]
        kernels = kernel(image_features, image_features) * other_seeds
        among_images = ops.sum(probabilities * ops.matmul(kernels, probabilities)) * GROUPS / (GROUPS - 1)
        kid = 1000.0 * (among_images - 2.0 * ops.sum(probabilities * mean_kernel))  # without a constant of the photos
        return kid + weight * ops.sum(probabilities * anomaly_score)

    group = np.arange(GROUPS * CANDIDATES) // CANDIDATES
    other_seeds = (group[:, None] != group).astype(np.float32)
    network.compile(optimizer, loss)
    mean_kernel = np.concatenate(
        [
            ops.convert_to_numpy(ops.mean(kernel(features[i : i + KERNEL_ROWS], photo_features), axis=1))
            for i in range(0, len(features), KERNEL_ROWS)
        ]
    )
    targets = np.column_stack([features, mean_kernel, anomaly_scores])
    rng = np.random.default_rng(0)
    for _ in tqdm(range(STEPS), "select: training", unit="step", mininterval=progress_interval_s()):
        rows = rng.integers(len(latents), size=GROUPS * CANDIDATES)
        network.train_on_batch(latents[rows], targets[rows])
    weights = network.get_weights()
    if not all(np.isfinite(array).all() for array in weights):
        raise TrainingError(f"With --weight {weight} the selector's weights are not finite; set a smaller one.")
    return Selector.from_weights(weights)


def kernel(x: Any, y: Any) -> Any:
    """Return KID's kernel (Binkowski et al. 2018, section 4.1) of x [N, F] and y [M, F], as [N, M]."""
    return (ops.matmul(x, ops.transpose(y)) / x.shape[1] + 1.0) ** 3
