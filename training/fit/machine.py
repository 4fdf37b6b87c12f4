"""The machine's devices and memory, and the time of a batch."""

import itertools
import os
import statistics
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training.config import TrainingConfig
from training.fit.plan import Machine
from training.model.gan import build_gan
from training.model.replicas import distribute_batches

WARM_UP_STEPS = 2  # the first step compiles, the second still allocates
TIMED_S, MIN_TIMED_STEPS = 2.0, 3


def detect_machine() -> Machine:
    """Return the devices and memory that the Keras backend can use."""
    backend, gpu = keras.backend.backend(), None
    if backend == "jax":
        import jax

        if jax.default_backend() == "gpu":
            gpu = jax.devices()[0].device_kind
    else:
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU")[:1]:  # this does not start the device
            gpu = tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return Machine(backend, gpu, len(os.sched_getaffinity(0)), memory_bytes() // 2**20)


def memory_bytes(root: Path = Path("/")) -> int:
    """Return this process's memory: the machine's, or a control group's limit.

    `root` is the file system of /proc and /sys. Version 2 of control groups has a limit in each folder up to the slice,
    version 1 a hierarchy for memory alone. A container may see its own group as the root.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        hierarchy = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        for folder in Path(group).relative_to("/"), *Path(group).relative_to("/").parents:
            for name in ("memory.limit_in_bytes",) if controllers else ("memory.max", "memory.high"):
                file = hierarchy / folder / name
                text = file.read_text().strip() if file.exists() else "max"
                limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def measure_step_s(config: TrainingConfig, *, refining: bool = False) -> float:
    """Return the median seconds of a batch of blank images, after compilation."""
    pixels = np.full((config.batch_size, config.image_size, config.image_size, 3), 255, np.uint8)
    latents = np.zeros((config.batch_size, config.latent_dim), np.float32)
    # Keras accepts generators, but no other iterators.
    batches = distribute_batches(lambda: ((pixels, latents) for _ in itertools.count()))
    gan = build_gan(config, refining=refining)
    ends_s: list[float] = []  # of the batches after the warm-up

    def record_end(batch: int, logs: Any) -> None:
        if batch + 1 >= WARM_UP_STEPS:
            ends_s.append(time.perf_counter())
        gan.stop_training = len(ends_s) > MIN_TIMED_STEPS and ends_s[-1] - ends_s[0] > TIMED_S

    stopwatch = keras.callbacks.LambdaCallback(on_train_batch_end=record_end)
    gan.fit(batches, steps_per_epoch=10**6, shuffle=False, verbose=0, callbacks=[stopwatch])
    keras.utils.clear_session()
    return statistics.median(after - before for before, after in itertools.pairwise(ends_s))
