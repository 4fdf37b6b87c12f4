"""The SavedModel contract: what a model server is asked for, as TensorFlow functions."""

from typing import Any

import tensorflow as tf

from training.fusion import build_function, fuse
from training.gan import GAN
from training.latents import standardise, sum_of_uniforms


class Servable(tf.Module):
    """The three signatures of the SavedModel contract; no assertions, so that no row can fail its batch."""

    def __init__(self, gan: GAN, *, row_by_row: bool) -> None:
        super().__init__(name="generator")
        self.latent_dim, self.row_by_row = gan.config.latent_dim, row_by_row
        self._generate = build_function(fuse(gan.ema_generator), self.latent_dim)

    def floats_of(self, latents: Any) -> Any:
        """Return images float32[N, S, S, 3] in [-1, 1] of latents float32[N, latent_dim].

        A picture must not depend on its company, and oneDNN's kernels round the last bit by the size of the batch.
        With AVX-512 and two threads to an operation every even size gives the bits of size 1, so odd batches from 3
        up run with one more row. Elsewhere sizes disagree (AVX2: all; eight threads: most), and rows run one by one:
        that holds anywhere, but is 1.4 times as slow. `export.prove` finds out. An empty batch gets a row, too:
        without one, oneDNN gives it the number of channels of an inner layer.
        """
        if self.row_by_row:
            rows = tf.map_fn(lambda row: self._generate(row[tf.newaxis]), latents, fn_output_signature=tf.float32)
            return tf.reshape(rows, (-1, *rows.shape[2:]))
        n = tf.shape(latents)[0]
        extra = tf.where(n == 1, 0, tf.maximum(1 - n, n % 2))
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
        """Return the concrete functions by name."""
        latents = tf.TensorSpec((None, self.latent_dim), tf.float32, name="latents")
        seeds = tf.TensorSpec((None,), tf.int64, name="seeds")

        def concrete(function: Any, spec: tf.TensorSpec) -> Any:
            return tf.function(function, input_signature=[spec], autograph=False)

        return {
            "serving_default": concrete(lambda latents: {"images": self.images_of(latents)}, latents),
            "generate": concrete(lambda seeds: {"images": self.images_of(self.latents_of(seeds))}, seeds),
            "sample": concrete(lambda seeds: {"latents": self.latents_of(seeds)}, seeds),
        }
