"""A GAN in the way of Keras's examples: two optimizers, two passes through either network, `fit` on tf.data."""

from collections.abc import Callable

import keras
import tensorflow as tf

from benchmarks.stock_layers import in_stock_layers


class TwoPassGAN(keras.Model):
    """Trains the discriminator on a batch of both kinds, then the generator on new latents."""

    def __init__(self, generator: keras.Model, discriminator: keras.Model, latent_dim: int) -> None:
        super().__init__()
        self.generator, self.discriminator, self.latent_dim = generator, discriminator, latent_dim

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        """Keep an optimizer for each network."""
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    def train_step(self, real):
        """Update the discriminator, then the generator."""
        n = tf.shape(real)[0]
        generated = self.generator(tf.random.normal((n, self.latent_dim)))
        labels = tf.concat([tf.ones((n,)), tf.zeros((n,))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(tf.concat([real, generated], axis=0)))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))
        latents = tf.random.normal((n, self.latent_dim))
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(tf.ones((n,)), self.discriminator(self.generator(latents, training=True)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


def fit(config, pixels, on_batch: Callable[[], bool], *, our_layers: bool) -> None:
    """Train on `pixels` uint8[n, S, S, 3] until `on_batch`, called after each batch, returns False.

    The generator has Keras's own layers, or with `our_layers` those of training.model.networks.
    """
    from training.model.networks import build_discriminator, build_generator

    generator = build_generator(config.latent_dim, config.generator_channels)
    gan = TwoPassGAN(
        generator if our_layers else in_stock_layers(generator),
        build_discriminator(config.image_size, config.discriminator_channels),
        config.latent_dim,
    )
    gan.compile(
        keras.optimizers.Adam(config.learning_rate, beta_1=config.beta_1),
        keras.optimizers.Adam(config.learning_rate, beta_1=config.beta_1),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    data = tf.data.Dataset.from_tensor_slices(pixels).shuffle(1024).repeat().batch(config.batch_size)
    data = data.map(lambda x: tf.cast(x, tf.float32) / 127.5 - 1.0).prefetch(tf.data.AUTOTUNE)

    class EachBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not on_batch():
                self.model.stop_training = True

    gan.fit(data, steps_per_epoch=10**6, verbose=0, callbacks=[EachBatch()])
