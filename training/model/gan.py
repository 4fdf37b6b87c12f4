"""The GAN: both networks, their training step and the moving average."""

from typing import Any

import keras
from keras import ops

from training.config import TrainingConfig
from training.model.augmentation import augment
from training.model.losses import HINGE, LOGISTIC, approximate_r1
from training.model.networks import build_discriminator, build_generator
from training.model.projected import ProjectedDiscriminator
from training.model.replicas import Tensor, count_replicas, draw_rows


class GAN(keras.Model):
    """Generator and discriminator, updated at the same time from one batch.

    Data is a pair: photos uint8[N, S, S, 3] and latents float32[N, latent_dim]. One Adam updates both networks: its
    moments are per variable, so it acts as two optimizers, while compile, fit, schedules and checkpoints stay ordinary.
    `ema_generator` is the network to evaluate and export: the moving average of the generator's weights, with the
    generator's current normalisation statistics. All randomness of a step comes from `noise`, and its state
    is a variable. So restoring `variables` and `optimizer.variables` continues training exactly.
    """

    def __init__(self, config: TrainingConfig, *, refining: bool) -> None:
        super().__init__(name="gan")
        self.config = config
        self.first_step = config.first_refining_step if refining else 0
        self.last_step = config.steps if refining else config.first_refining_step
        self.generator = build_generator(config.latent_dim, config.generator_channels)
        if config.discriminator == "projected":
            self.discriminator, self.loss_functions = build_projected(config, refining=refining), HINGE
        else:
            self.discriminator = build_discriminator(config.image_size, config.discriminator_channels)
            self.loss_functions = LOGISTIC
        self.ema_generator = build_generator(config.latent_dim, config.generator_channels)
        self.ema_generator.set_weights(self.generator.get_weights())
        self.ema_generator.trainable = False
        self.noise = keras.random.SeedGenerator(config.seed, name="noise")
        self.built = True  # every part is built; the model itself has no call

    def compute_losses(self, photos: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the generator's loss, the discriminator's loss and the logs, all scalars.

        The code is the same on every backend. Each loss is differentiated with respect to its own network's variables,
        so no network needs freezing and no tensor needs detaching.
        """
        config = self.config
        real = augment(config, ops.cast(photos, "float32") / 127.5 - 1.0, self.noise)
        # After the first stage the statistics are fixed, as in inference: KID x1000 then ends at 2.5, otherwise at 3.7.
        # A run that starts from another generator uses those of the batch: new layers have no others yet.
        generated = augment(config, self.generator(latents, training=self.first_step == 0), self.noise)
        real_logits = self.discriminator(real, training=True)
        generated_logits = self.discriminator(generated, training=True)
        generator_loss = self.loss_functions.generator(generated_logits)
        discriminator_loss = self.loss_functions.discriminator(real_logits, generated_logits)
        if config.r1_gamma > 0:
            noisy = real + config.r1_sigma * draw_rows(keras.random.normal, ops.shape(real), seed=self.noise)
            noisy_logits = self.discriminator(noisy, training=True)
            penalty = approximate_r1(real_logits, noisy_logits, gamma=config.r1_gamma, sigma=config.r1_sigma)
            discriminator_loss = discriminator_loss + penalty
        logs = {
            "g_loss": generator_loss,
            "d_loss": discriminator_loss,
            "d_real": self.loss_functions.score(real_logits),
            "d_generated": self.loss_functions.score(generated_logits),
        }
        return generator_loss, discriminator_loss, logs

    @property
    def step(self) -> int:
        """The number of batches done, over both stages."""
        return self.first_step + int(self.optimizer.iterations.numpy())

    def copy_generator_weights(self, source: keras.Model) -> None:
        """Copy layers by name and shapes from `source`, maybe a smaller network."""
        source_weights = {layer.name: layer.get_weights() for layer in source.layers}
        for target in (self.generator, self.ema_generator):
            for layer in target.layers:
                weights = source_weights.get(layer.name, [])
                if [w.shape for w in weights] == [tuple(w.shape) for w in layer.weights]:
                    layer.set_weights(weights)

    def update_moving_average(self) -> None:
        """Move `ema_generator` towards the generator.

        The half-life is 5 % of the stage's photos until it reaches `ema_half_life`: an average over the first, random
        weights would hide the early progress.
        """
        photos = ops.cast(self.optimizer.iterations, "float32") * self.config.batch_size
        half_life = ops.minimum(float(self.config.ema_half_life), ops.maximum(0.05 * photos, 1.0))
        decay = ops.exp2(-self.config.batch_size / half_life)
        statistics = {id(v) for v in self.generator.non_trainable_variables}
        for average, current in zip(self.ema_generator.weights, self.generator.weights, strict=True):
            if id(current) in statistics:
                average.assign(current)
            else:
                average.assign(current + decay * (average - current))

    def make_train_function(self, force: bool = False) -> None:
        """Make the train function; that of Keras 3.15 fails with several workers."""
        if count_replicas() == 1:
            super().make_train_function(force)
            return
        import tensorflow as tf

        strategy = tf.distribute.get_strategy()  # Keras would average the logs over an axis they lack

        def step(iterator: Any) -> dict[str, Tensor]:
            logs = strategy.run(self.train_step, args=(next(iterator),))
            return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        self.train_function = tf.function(step)

    @property
    def metrics(self) -> list[keras.Metric]:
        """No metrics: the step returns its logs. Keras's own would wait for all workers at every read."""
        return []

    def _maybe_symbolic_build(self, **data: Any) -> None:
        """Do nothing: parts are built, and Keras 3.15 fails with several workers."""

    def train_step(self, *args: Any) -> Any:
        """Update both networks on one batch."""
        if keras.backend.backend() == "jax":
            return self._jax_train_step(*args)
        return self._tensorflow_train_step(*args)

    def _tensorflow_train_step(self, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            generator_loss, discriminator_loss, logs = self.compute_losses(*data)
            # The optimizer sums the gradients of all replicas, and each replica has a share of the batch.
            generator_loss /= count_replicas()
            discriminator_loss /= count_replicas()
        generator_variables = self.generator.trainable_variables
        discriminator_variables = self.discriminator.trainable_variables
        gradients = tape.gradient(generator_loss, generator_variables)
        gradients += tape.gradient(discriminator_loss, discriminator_variables)
        self.optimizer.apply(gradients, [*generator_variables, *discriminator_variables])
        self.update_moving_average()
        return logs

    def _jax_train_step(self, state: Any, data: tuple[Tensor, Tensor]) -> Any:
        import jax

        trainable, non_trainable, optimizer_variables, metrics_variables = state
        n_generator = len(self.generator.trainable_variables)

        def stateless_losses(trainable: list[Tensor]) -> Any:
            values = [*zip(self.trainable_variables, trainable, strict=True)]
            values += zip(self.non_trainable_variables, non_trainable, strict=True)
            with keras.StatelessScope(values) as scope:
                generator_loss, discriminator_loss, logs = self.compute_losses(*data)
            updated = [scope.get_current_value(v) for v in self.non_trainable_variables]
            return (generator_loss, discriminator_loss), (logs, updated)

        # One linearisation, pulled back twice: cotangent (1, 0) is the generator's loss, (0, 1) the discriminator's.
        (generator_loss, _), pull_back, (logs, non_trainable) = jax.vjp(stateless_losses, trainable, has_aux=True)
        one, zero = ops.ones_like(generator_loss), ops.zeros_like(generator_loss)
        gradients = pull_back((one, zero))[0][:n_generator] + pull_back((zero, one))[0][n_generator:]
        trainable, optimizer_variables = self.optimizer.stateless_apply(optimizer_variables, gradients, trainable)

        values = [*zip(self.trainable_variables, trainable, strict=True)]
        values += zip(self.non_trainable_variables, non_trainable, strict=True)
        values += zip(self.optimizer.variables, optimizer_variables, strict=True)
        with keras.StatelessScope(values) as scope:
            self.update_moving_average()
        non_trainable = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return logs, (trainable, non_trainable, optimizer_variables, metrics_variables)


def build_projected(config: TrainingConfig, *, refining: bool) -> ProjectedDiscriminator:
    """Return the projected discriminator of a stage.

    The refining stage uses images of 128 px and five taps, and for images of that size a head that sees colours. This
    pays at the end of a run, not from its start. Its heads begin narrower, because its features are larger.
    """
    if not refining:
        return ProjectedDiscriminator(64, taps=(1, 2, 3, 5), widths=(64, 64, 64, 128), first_width=64, seed=config.seed)
    return ProjectedDiscriminator(
        max(128, config.image_size),
        taps=(1, 2, 3, 5, 7),
        widths=(32, 64, 64, 64, 128),
        first_width=32,
        seed=config.seed + 1,
        sees_colours=config.image_size >= 128,  # at 64 px KID was higher with it: 7.0 against 5.2
    )


def build_gan(config: TrainingConfig, *, refining: bool = False) -> GAN:
    """Return a compiled GAN for one stage of a run. `config.seed` fixes its initial weights."""
    keras.utils.set_random_seed(config.seed)
    gan = GAN(config, refining=refining)
    rate = config.refining_learning_rate if refining else config.learning_rate
    half = max(gan.last_step - gan.first_step, 1) / 2
    # Keras calls it a warm-up, but the rate is constant in the first half, because it starts at its target.
    schedule = keras.optimizers.schedules.CosineDecay(
        rate, half, alpha=config.final_rate_fraction, warmup_target=rate, warmup_steps=half
    )
    optimizer = keras.optimizers.Adam(schedule, config.beta_1, config.beta_2)
    optimizer.build(gan.trainable_variables)
    gan.compile(optimizer=optimizer, jit_compile=config.jit_compile and count_replicas() == 1)
    return gan
