"""Export the generator of a run as a SavedModel that TensorFlow Serving hosts."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from training.checkpoints import load_gan
from training.errors import ExportError
from training.fusion import build_function, fuse
from training.gan import GAN
from training.latents import MAX_SEED, sample_latents, standardise, sum_of_uniforms
from training.model_card import ExportChecks, write_model_card
from training.painting import paint

MAX_BATCH_SIZE = 64
ALLOWED_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # what TensorFlow Serving pads batches to; the last must be the maximum

BATCHING_PARAMETERS = f"""\
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
# A lone request does not wait for company; under load requests gather while the threads are busy.
batch_timeout_micros {{ value: 0 }}
max_enqueued_batches {{ value: 256 }}
num_batch_threads {{ value: 2 }}
{"".join(f"allowed_batch_sizes: {size}{chr(10)}" for size in ALLOWED_BATCH_SIZES)}"""


def export(run: Path, to: Path, *, licence: str, attribution: str) -> Path:
    """Write the moving average of `run`'s generator as the next version of the model folder `to`; return its folder.

    The version is written aside and renamed into place, so that a server which polls `to` sees it whole or not at
    all. Before that it is proved: pictures within 1/255 of the Keras generator's, and the very bits
    of batch size 1 at every batch size up to MAX_BATCH_SIZE.

    Raises:
        TrainingError: `run` is no run folder, a proof failed, or `to` cannot be written. `to` is unchanged then.
    """
    gan = load_gan(run)
    try:
        to.mkdir(parents=True, exist_ok=True)
        version = 1 + max((int(p.name) for p in to.iterdir() if p.name.isdecimal()), default=0)
        with tempfile.TemporaryDirectory(dir=to, prefix=".export-") as aside:
            folder = Path(aside) / str(version)
            servable = Servable(gan)
            save_servable(servable, folder, model_name=to.name)
            checks = prove(gan, servable, folder)
            write_model_card(
                folder, run, gan, model_name=to.name, licence=licence, attribution=attribution, checks=checks
            )
            return folder.rename(to / str(version))
    except OSError as error:
        raise ExportError(f"The model folder {to} could not be written: {error.strerror or error}.") from error


class Servable(tf.Module):
    """The three signatures of the SavedModel contract; no assertions, so that no row can fail its batch."""

    def __init__(self, gan: GAN) -> None:
        super().__init__(name="generator")
        self.latent_dim = gan.config.latent_dim
        self._generate = build_function(fuse(gan.ema_generator), self.latent_dim)

    def floats_of(self, latents: Any) -> Any:
        """Return images float32[N, S, S, 3] in [-1, 1] of latents float32[N, latent_dim].

        Odd batches from 3 up run with one more row: oneDNN's kernels for them round the last bit differently, which
        changed bytes in 4 to 20 % of the pictures. `prove` checks that nothing else does. An empty batch gets a row,
        too: without one, oneDNN gives it the number of channels of an inner layer.
        """
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


def save_servable(servable: Servable, folder: Path, *, model_name: str) -> None:
    """Write the SavedModel to `folder`, with what TensorFlow Serving reads beside the graph."""
    tf.saved_model.save(servable, str(folder), signatures=servable.signatures())
    (folder / "batching_params.pbtxt").write_text(BATCHING_PARAMETERS, encoding="utf-8")
    warm_up = folder / "assets.extra" / "tf_serving_warmup_requests"
    warm_up.parent.mkdir()
    with tf.io.TFRecordWriter(str(warm_up)) as writer:
        for request in warm_up_requests(model_name, servable.latent_dim, ALLOWED_BATCH_SIZES):
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def warm_up_requests(model_name: str, latent_dim: int, sizes: Sequence[int]) -> list[predict_pb2.PredictRequest]:
    """Return a Predict request of either signature for each batch size: the first of a size costs 10 times more."""
    requests = []
    for size in sizes:
        rows = {
            ("generate", "seeds"): np.arange(size, dtype=np.int64),
            ("serving_default", "latents"): np.zeros((size, latent_dim), np.float32),
        }
        for (signature, name), values in rows.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            requests.append(request)
    return requests


def prove(gan: GAN, servable: Servable, folder: Path) -> ExportChecks:
    """Check `servable`, and its SavedModel in `folder`, against their promises.

    Raises:
        ExportError: pictures differ from the Keras generator's by more than 1/255, or batch sizes disagree.
    """
    seeds = np.random.default_rng(0).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)
    generate = tf.saved_model.load(str(folder)).signatures["generate"]
    pictures = np.asarray(generate(seeds=tf.constant(seeds))["images"])
    difference = int(np.abs(pictures.astype(np.int16) - paint(gan.ema_generator, seeds)).max())
    if difference > 1:
        raise ExportError(f"The fused generator differs from the Keras one by {difference}/255; allowed is 1/255.")

    # Floats, not pixels: a last bit that differs changes a picture only now and then, and would slip through.
    spec = tf.TensorSpec((None, servable.latent_dim), tf.float32)
    floats_of = tf.function(servable.floats_of, input_signature=[spec], autograph=False)
    latents = tf.constant(sample_latents(seeds, servable.latent_dim))
    alone = np.concatenate([floats_of(latents[i : i + 1]) for i in range(len(seeds))])
    unlike = [n for n in range(1, MAX_BATCH_SIZE + 1) if not np.array_equal(floats_of(latents[:n]), alone[:n])]
    if unlike:
        raise ExportError(
            f"Batches of {', '.join(map(str, unlike))} give other pixels than batches of 1 on this machine: a seed "
            "would not keep its picture. Export where oneDNN is on (TF_ENABLE_ONEDNN_OPTS=1, x86-64 with AVX2)."
        )
    return ExportChecks(largest_difference=difference, batch_sizes=MAX_BATCH_SIZE, seeds=len(seeds))
