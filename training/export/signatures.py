"""The SavedModel contract: what a model server is asked for, as TensorFlow functions."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.export.fusion import build_function, fuse
from training.model.checkpoints import TrainedGenerator
from training.model.latents import standardise, sum_of_uniforms

# One batch of the largest size. Another kind of processor rounds 4 to 20 % of the pictures to other bytes: of 64, some
# show it (at 4 % in 93 cases of 100), of a handful often none would.
GOLDEN_SEEDS = np.arange(64, dtype=np.int64)

# Rows a signature computes at once. A stock server limits no call: 10,000 seeds at once took 10 GB.
CHUNK_ROWS = 64


class Servable(tf.Module):
    """The signatures of the SavedModel contract; no assertions, so that no row can fail its batch."""

    def __init__(self, generator: TrainedGenerator, *, row_by_row: bool) -> None:
        super().__init__(name="generator")
        self.latent_dim, self.row_by_row = generator.config.latent_dim, row_by_row
        # One function, else every signature would hold the weights once more.
        spec = tf.TensorSpec((None, self.latent_dim), tf.float32)
        network = build_function(fuse(generator.network), self.latent_dim)
        self._generate = tf.function(network, input_signature=[spec], autograph=False)

    def floats_of(self, latents: Any) -> Any:
        """Return images float32[N, S, S, 3] in [-1, 1] of latents float32[N, latent_dim].

        A picture must not depend on its company, and oneDNN's kernels round the last bit by the size of the batch.
        With AVX-512 and one or two threads to an operation every even size gives the bits of size 1, so odd batches
        from 3 up run with one more row. Elsewhere sizes disagree (AVX2: all; eight threads: most), and rows run one by
        one: that holds anywhere, but is 1.4 times as slow. `export.prove` finds out.
        """
        if self.row_by_row:
            rows = tf.map_fn(lambda row: self._generate(row[tf.newaxis]), latents, fn_output_signature=tf.float32)
            return tf.reshape(rows, (-1, *rows.shape[2:]))
        n = tf.shape(latents)[0]
        extra = tf.where(n == 1, 0, n % 2)
        return self._generate(tf.pad(latents, [[0, extra], [0, 0]]))[:n]

    def images_of(self, latents: Any) -> Any:
        """Return images uint8[N, S, S, 3], sRGB, of latents float32[N, latent_dim]."""
        return tf.cast(tf.clip_by_value(tf.round((self.floats_of(latents) + 1.0) * 127.5), 0.0, 255.0), tf.uint8)

    def latents_of(self, seeds: Any) -> Any:
        """Return ringo-latent/1 float32[N, latent_dim] of seeds int64[N]."""
        low = tf.cast(tf.bitwise.bitwise_and(seeds, tf.constant(0xFFFFFFFF, tf.int64)), tf.uint32)
        high = tf.cast(tf.bitwise.right_shift(seeds, tf.constant(32, tf.int64)), tf.uint32)
        sums = sum_of_uniforms(low, high, self.latent_dim, tf.bitwise.right_shift)
        return standardise(tf.cast(sums, tf.float32))

    def signatures(self) -> dict[str, Any]:
        """Return the concrete functions by name.

        `golden` tells what `generate` gave here for GOLDEN_SEEDS, so that whoever asks a replica of whatever machine
        can tell whether it paints the same: row by row it looks up `index` modulo their number. An index and not
        nothing, because a model server takes no request without a row and may batch this one with others.
        """
        latents = tf.TensorSpec((None, self.latent_dim), tf.float32, name="latents")
        seeds = tf.TensorSpec((None,), tf.int64, name="seeds")
        index = tf.TensorSpec((None,), tf.int64, name="index")

        def function(body: Any, spec: tf.TensorSpec) -> Any:
            return tf.function(body, input_signature=[spec], autograph=False)

        def images_of_seeds(seeds: Any) -> Any:
            return self.images_of(self.latents_of(seeds))

        generate = function(lambda seeds: {"images": in_chunks(images_of_seeds, seeds)}, seeds)
        digests = pixel_digests(generate(tf.constant(GOLDEN_SEEDS))["images"].numpy())

        def golden(index: Any) -> dict[str, Any]:
            row = tf.math.floormod(index, tf.constant(len(GOLDEN_SEEDS), tf.int64))
            return {"seeds": tf.gather(GOLDEN_SEEDS, row), "digests": tf.gather(digests, row)}

        return {
            "serving_default": function(lambda latents: {"images": in_chunks(self.images_of, latents)}, latents),
            "generate": generate,
            "sample": function(lambda seeds: {"latents": in_chunks(self.latents_of, seeds)}, seeds),
            "golden": function(golden, index),
        }


def in_chunks(body: Callable[[Any], Any], rows: Any) -> Any:
    """Return `body(rows)`, computed for at most CHUNK_ROWS rows at a time.

    `body` maps N rows to N rows, each on its own. The output is written in place: a list of chunks, joined at the end,
    would hold every row twice, and TensorFlow's CPU allocator keeps what it ever held.
    """
    chunk = tf.function(body, input_signature=[tf.TensorSpec(rows.shape, rows.dtype)], autograph=False)
    row = chunk.get_concrete_function().outputs[0]
    n, shape = tf.shape(rows)[0], row.shape[1:]

    def write_chunk(start: Any, output: Any) -> tuple[Any, Any]:
        end = tf.minimum(start + CHUNK_ROWS, n)
        return end, tf.raw_ops.InplaceUpdate(x=output, i=tf.range(start, end), v=chunk(rows[start:end]))

    return tf.while_loop(
        lambda start, output: start < n,
        write_chunk,
        (0, tf.raw_ops.Empty(shape=(n, *shape), dtype=row.dtype)),
        shape_invariants=(tf.TensorSpec((), tf.int32), tf.TensorSpec((None, *shape), row.dtype)),
        parallel_iterations=1,  # by default ten chunks would be under way at a time
    )[1]


def pixel_digests(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the SHA-256 of each picture's pixels, row by row, as uint8[N, 32], for `images` uint8[N, H, W, 3]."""
    digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(digests, np.uint8).reshape(len(images), hashlib.sha256().digest_size)
