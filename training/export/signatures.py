"""The signatures of the SavedModel contract, as TensorFlow functions."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.export.fusion import build_function, fuse
from training.model.checkpoints import TrainedGenerator
from training.model.latents import standardise, sum_of_uniforms
from training.model.selector import CANDIDATES

# One batch of the largest size. Another kind of processor gives other bytes for 4 to 20 % of the images. At 4 %, a
# check of 64 images detects this in 93 of 100 cases; a check of a few images often would not.
GOLDEN_SEEDS = np.arange(64, dtype=np.int64)

# Rows per step. A stock server does not limit the size of a call, and 10,000 seeds at once took 10 GB.
CHUNK_ROWS = 64


class Servable(tf.Module):
    """The functions of the SavedModel contract. They have no assertions, so no row can fail its batch."""

    def __init__(self, generator: TrainedGenerator, *, sequential: bool) -> None:
        super().__init__(name="generator")
        self.latent_dim, self.sequential = generator.config.latent_dim, sequential
        self._selector = generator.selector
        # One shared function, because each copy would contain the weights again.
        spec = tf.TensorSpec((None, self.latent_dim), tf.float32)
        network = build_function(fuse(generator.network), self.latent_dim)
        self._generate = tf.function(network, input_signature=[spec], autograph=False)

    def compute_floats(self, latents: Any) -> Any:
        """Return images float32[N, S, S, 3] of latents float32[N, latent_dim].

        Values are in [-1, 1]. An image must not depend on the other rows, but kernels round the last bit by the size
        of the batch. With oneDNN and one thread per operation, every even size gives the bits of size 1, so an odd
        batch from 3 up gets one more row. Elsewhere sizes disagree (without oneDNN: all; eight threads: most).
        Then the function is `sequential`: rows run one by one, which is correct anywhere, but 1.4 times as slow.
        `command.save_verified` checks it.
        """
        if self.sequential:
            rows = tf.map_fn(lambda row: self._generate(row[tf.newaxis]), latents, fn_output_signature=tf.float32)
            return tf.reshape(rows, (-1, *rows.shape[2:]))
        n = tf.shape(latents)[0]
        extra = tf.where(n == 1, 0, n % 2)
        return self._generate(tf.pad(latents, [[0, extra], [0, 0]]))[:n]

    def compute_images(self, latents: Any) -> Any:
        """Return images uint8[N, S, S, 3], sRGB, of latents float32[N, latent_dim]."""
        return tf.cast(tf.clip_by_value(tf.round((self.compute_floats(latents) + 1.0) * 127.5), 0.0, 255.0), tf.uint8)

    def compute_latents(self, seeds: Any) -> Any:
        """Return the latents float32[N, latent_dim] of seeds int64[N]: ringo-latent/2 with a selector, else 1."""
        low = tf.cast(tf.bitwise.bitwise_and(seeds, tf.constant(0xFFFFFFFF, tf.int64)), tf.uint32)
        high = tf.cast(tf.bitwise.right_shift(seeds, tf.constant(32, tf.int64)), tf.uint32)
        count = CANDIDATES if self._selector else 1
        sums = sum_of_uniforms(low, high, count * self.latent_dim, tf.bitwise.right_shift)
        latents = standardise(tf.cast(sums, tf.float32))
        if self._selector is None:
            return latents
        candidates = tf.reshape(latents, (-1, self.latent_dim))
        scores = self._selector.score(tf.cast(candidates, tf.float64), tf.round)
        chosen = tf.argmax(tf.reshape(scores, (-1, count)), axis=1)
        return tf.gather(tf.reshape(candidates, (-1, count, self.latent_dim)), chosen, batch_dims=1)

    def signatures(self) -> dict[str, Any]:
        """Return the functions by name.

        `golden` returns the digests of `generate` on this machine for GOLDEN_SEEDS, so a client can check whether a
        replica renders the same bytes. It takes rows of `index`, modulo the number of seeds, because a model server
        accepts no request without rows and may batch requests.
        """
        latents = tf.TensorSpec((None, self.latent_dim), tf.float32, name="latents")
        seeds = tf.TensorSpec((None,), tf.int64, name="seeds")
        index = tf.TensorSpec((None,), tf.int64, name="index")

        def function(body: Any, spec: tf.TensorSpec) -> Any:
            return tf.function(body, input_signature=[spec], autograph=False)

        def images_from_seeds(seeds: Any) -> Any:
            return self.compute_images(self.compute_latents(seeds))

        generate = function(lambda seeds: {"images": run_in_chunks(images_from_seeds, seeds)}, seeds)
        digests = pixel_digests(generate(tf.constant(GOLDEN_SEEDS))["images"].numpy())

        def golden(index: Any) -> dict[str, Any]:
            row = tf.math.floormod(index, tf.constant(len(GOLDEN_SEEDS), tf.int64))
            return {"seeds": tf.gather(GOLDEN_SEEDS, row), "digests": tf.gather(digests, row)}

        return {
            "serving_default": function(
                lambda latents: {"images": run_in_chunks(self.compute_images, latents)}, latents
            ),
            "generate": generate,
            "sample": function(lambda seeds: {"latents": run_in_chunks(self.compute_latents, seeds)}, seeds),
            "golden": function(golden, index),
        }


def run_in_chunks(body: Callable[[Any], Any], rows: Any) -> Any:
    """Return `body(rows)`, computed in chunks of at most CHUNK_ROWS rows.

    `body` maps each of N rows independently. The output is written in place: concatenating chunks would hold every row
    twice, and TensorFlow's CPU allocator never returns memory.
    """
    run_chunk = tf.function(body, input_signature=[tf.TensorSpec(rows.shape, rows.dtype)], autograph=False)
    row = run_chunk.get_concrete_function().outputs[0]
    n, shape = tf.shape(rows)[0], row.shape[1:]

    def write_chunk(start: Any, output: Any) -> tuple[Any, Any]:
        end = tf.minimum(start + CHUNK_ROWS, n)
        return end, tf.raw_ops.InplaceUpdate(x=output, i=tf.range(start, end), v=run_chunk(rows[start:end]))

    return tf.while_loop(
        lambda start, output: start < n,
        write_chunk,
        (0, tf.raw_ops.Empty(shape=(n, *shape), dtype=row.dtype)),
        shape_invariants=(tf.TensorSpec((), tf.int32), tf.TensorSpec((None, *shape), row.dtype)),
        parallel_iterations=1,  # the default would run ten chunks in parallel
    )[1]


def pixel_digests(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8[N, 32], the digests of `images` uint8[N, H, W, 3]."""
    digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(digests, np.uint8).reshape(len(images), hashlib.sha256().digest_size)
