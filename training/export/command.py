"""Export the generator of a run as a SavedModel that TensorFlow Serving hosts."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from training.errors import ExportError
from training.export.model_card import ExportChecks, Fault, read_run, write_model_card
from training.export.signatures import CHUNK_ROWS, GOLDEN_SEEDS, Servable, pixel_digests
from training.model.checkpoints import TrainedGenerator, load_generator
from training.model.latents import MAX_SEED, sample_latents
from training.model.sampling import generate_images
from training.records import write_atomically, write_record

MAX_BATCH_SIZE = CHUNK_ROWS
ALLOWED_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # what TensorFlow Serving pads batches to; the last must be the maximum

BATCHING_PARAMETERS = f"""\
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
# A lone request does not wait for company; under load requests gather while the threads are busy.
batch_timeout_micros {{ value: 0 }}
max_enqueued_batches {{ value: 256 }}
num_batch_threads {{ value: 2 }}
{"".join(f"allowed_batch_sizes: {size}{chr(10)}" for size in ALLOWED_BATCH_SIZES)}"""


def export(
    run: Path,
    to: Path,
    *,
    licence: str,
    attribution: str,
    faults: Sequence[Fault] = (),
    checkpoint: str = "best",
) -> Path:
    """Write the moving average of `run`'s generator as the next version of the model folder `to`; return its folder.

    The version is written aside and renamed into place, so that a server which polls `to` sees it whole or not at
    all. Before that it is proved: pictures within 1/255 of the Keras generator's, and the very bits
    of batch size 1 at every batch size up to MAX_BATCH_SIZE.

    Raises:
        TrainingError: `run` is no run folder, a proof failed, or `to` cannot be written. `to` is unchanged then.
    """
    generator, to = load_generator(run, checkpoint), to.resolve()
    record = read_run(run, generator)
    try:
        to.mkdir(parents=True, exist_ok=True)
        version = 1 + max((int(p.name) for p in to.iterdir() if p.name.isdecimal()), default=0)
        with tempfile.TemporaryDirectory(dir=to, prefix=".export-") as aside:
            folder = Path(aside) / str(version)
            checks = save_proved(generator, folder, model_name=to.name)
            paint_faults(generator, faults, folder / "faults")
            write_model_card(
                folder,
                record,
                model_name=to.name,
                licence=licence,
                attribution=attribution,
                checks=checks,
                faults=faults,
            )
            write_atomically(folder / "config.json", generator.config.to_json())
            # Without the folder: where somebody keeps photos is nobody's business.
            photos = {name: value for name, value in record.photos.items() if name != "folder"}
            write_record(folder / "photos.json", {**photos, "batch": record.steps})
            write_digests(folder)
            return folder.rename(to / str(version))
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"The model folder {to} could not be written: {error}.") from error


def write_digests(folder: Path) -> None:
    """Write `folder`/SHA256SUMS, which `sha256sum -c` reads. Raises OSError.

    It lists all files of the folder, so it has to be the last one written.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    write_atomically(folder / "SHA256SUMS", "".join(lines))


def paint_faults(generator: TrainedGenerator, faults: Sequence[Fault], folder: Path) -> None:
    """Write the picture of each fault's seed to `folder`/<seed>.png, for the model card. Raises OSError."""
    if faults:
        folder.mkdir()
        pictures = generate_images(generator.network, np.array([fault.seed for fault in faults]))
        for fault, picture in zip(faults, pictures, strict=True):
            Image.fromarray(picture).save(folder / f"{fault.seed}.png")


class NotInvariant(ExportError):
    """A seed's picture would depend on the size of its batch."""


def save_proved(generator: TrainedGenerator, folder: Path, *, model_name: str) -> ExportChecks:
    """Write the SavedModel to `folder`: the fast form if it is batch-invariant here, else the safe one."""
    try:
        servable = Servable(generator, row_by_row=False)
        save_servable(servable, folder, model_name=model_name)
        return prove(generator, servable, folder)
    except NotInvariant as error:
        print(f"{error} The model will paint a batch one row at a time.")
    shutil.rmtree(folder)
    servable = Servable(generator, row_by_row=True)
    save_servable(servable, folder, model_name=model_name)
    return prove(generator, servable, folder)


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


def prove(generator: TrainedGenerator, servable: Servable, folder: Path) -> ExportChecks:
    """Check `servable`, and its SavedModel in `folder`, against their promises.

    Raises:
        NotInvariant: batch sizes disagree.
        ExportError: pictures differ from the Keras generator's by more than 1/255, or a golden digest from the pixels
            that the written graph gives for its seed alone, or larger calls from the same rows in smaller ones.
    """
    seeds = np.random.default_rng(0).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)
    # Floats, not pixels: a last bit that differs changes a picture only now and then, and would slip through.
    spec = tf.TensorSpec((None, servable.latent_dim), tf.float32)
    floats_of = tf.function(servable.floats_of, input_signature=[spec], autograph=False)
    latents = tf.constant(sample_latents(seeds, servable.latent_dim))
    alone = np.concatenate([floats_of(latents[i : i + 1]) for i in range(len(seeds))])
    unlike = [n for n in range(1, MAX_BATCH_SIZE + 1) if not np.array_equal(floats_of(latents[:n]), alone[:n])]
    if unlike:
        sizes = ", ".join(map(str, unlike))
        raise NotInvariant(f"On this machine batches of {sizes} give other bits than batches of 1.")

    signatures = tf.saved_model.load(str(folder)).signatures
    generate = signatures["generate"]
    golden = signatures["golden"](index=tf.range(len(GOLDEN_SEEDS), dtype=tf.int64))
    painted = np.concatenate([generate(seeds=golden["seeds"][i : i + 1])["images"] for i in range(len(GOLDEN_SEEDS))])
    if not np.array_equal(golden["digests"], pixel_digests(painted)):
        raise ExportError("The written graph gives other pixels than its golden digests say.")

    pictures = np.asarray(generate(seeds=tf.constant(seeds))["images"])
    several_chunks = np.asarray(generate(seeds=tf.constant(np.concatenate([seeds, seeds[:33]])))["images"])
    if not np.array_equal(several_chunks, np.concatenate([pictures, pictures[:33]])):
        raise ExportError(f"The written graph gives other pixels in calls of more than {MAX_BATCH_SIZE} seeds.")
    difference = int(np.abs(pictures.astype(np.int16) - generate_images(generator.network, seeds)).max())
    if difference > 1:
        raise ExportError(f"The fused generator differs from the Keras one by {difference}/255; allowed is 1/255.")
    return ExportChecks(
        largest_difference=difference,
        batch_sizes=MAX_BATCH_SIZE,
        seeds=len(seeds),
        row_by_row=servable.row_by_row,
        threads=os.environ.get("TF_NUM_INTRAOP_THREADS", "TensorFlow's default number of"),
    )
