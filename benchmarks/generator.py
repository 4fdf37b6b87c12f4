"""How much faster the fused generator is than the Keras one, at several batch sizes: python -m benchmarks.generator."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")  # as the model server

import numpy as np
import tensorflow as tf

from training.config import TrainingConfig
from training.gan import build_gan
from training.latents import sample_latents
from training.servable import Servable

ROUNDS = 40  # interleaved, so that a busy moment hits both sides


def measure(image_size: int, batch_size: int) -> dict[str, Any]:
    """Return the median of fused against plain, over rounds that run one after the other."""
    gan = build_gan(TrainingConfig(image_size=image_size))
    generator, latent_dim = gan.ema_generator, gan.config.latent_dim
    spec = [tf.TensorSpec((None, latent_dim), tf.float32)]
    plain = tf.function(lambda z: generator(z, training=False), input_signature=spec, autograph=False)
    exported = Servable(gan, row_by_row=False).images_of  # padding and rounding to pixels are in its time
    fused = tf.function(exported, input_signature=spec, autograph=False)
    latents = tf.constant(sample_latents(np.arange(batch_size), latent_dim))

    def seconds(function: Callable[[Any], Any]) -> float:
        begin = time.perf_counter()
        np.asarray(function(latents))
        return time.perf_counter() - begin

    for function in (plain, fused):
        seconds(function), seconds(function)
    times = np.array([(seconds(plain), seconds(fused)) for _ in range(ROUNDS)])
    ratios = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    plain_ms, fused_ms = 1e3 * np.median(times, axis=0) / batch_size
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "plain_ms_per_picture": round(plain_ms, 3),
        "fused_ms_per_picture": round(fused_ms, 3),
        "times_as_fast": round(ratios[1], 2),
        "quartiles": [round(ratios[0], 2), round(ratios[2], 2)],
    }


if __name__ == "__main__":
    for size in (64, 128):
        for batch in (1, 4, 16):
            print(json.dumps(measure(size, batch)), flush=True)
