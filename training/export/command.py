"""The command `export`: write the generator of a run as a SavedModel."""

import errno
import hashlib
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from training.data.dataset import check_output_folder
from training.errors import TrainingError
from training.export.model_card import NO_FAULT, NOT_EVALUATED, Fault, read_run, write_model_card
from training.export.signatures import CHUNK_ROWS, GOLDEN_SEEDS, Servable, pixel_digests
from training.model.checkpoints import TrainedGenerator, load_generator
from training.model.latents import MAX_SEED, sample_latents
from training.records import write_atomically, write_record

MAX_BATCH_SIZE = CHUNK_ROWS
ALLOWED_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # TensorFlow Serving pads to these; the last must be the maximum

BATCHING_PARAMETERS = f"""\
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
# A lone request does not wait; under load, requests gather while the threads are busy.
batch_timeout_micros {{ value: 0 }}
max_enqueued_batches {{ value: 256 }}
num_batch_threads {{ value: 2 }}
{"".join(f"allowed_batch_sizes: {size}{chr(10)}" for size in ALLOWED_BATCH_SIZES)}"""

REPORT_BUG = "report this as a bug, with the versions of TensorFlow and Keras"


def export(
    run: Path, to: Path, *, licence: str, attribution: str, faults: Sequence[Fault] = (), checkpoint: str = "best"
) -> Path:
    """Write the next version of the model folder `to`; return its folder.

    If the newest version has the same images and facts, it returns that one and writes none.
    The version contains the moving average of `run`'s generator. It is written to a temporary folder, verified, and
    renamed, so a server that polls `to` never sees an incomplete version. Verified means: images within 1/255 of the
    Keras generator's, and equal bits at every batch size up to MAX_BATCH_SIZE.
    Raises TrainingError if `run` is not a run folder, a check failed, or `to` cannot be written. `to` is unchanged.
    """
    to = to.resolve()
    check_model_name(to.name)
    check_output_folder(to, "--to")
    generator = load_generator(run, checkpoint)
    record = read_run(run, generator)
    try:
        to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to, prefix=".export-") as temporary:
            folder = Path(temporary) / "version"
            checks = save_verified(generator, folder, model_name=to.name)
            save_fault_images(generator, faults, folder / "faults")
            write_record(folder / "config.json", asdict(generator.config))
            photos = replace(record.photos, folder=None, fates=None, batch=record.steps)  # the names of group ends stay
            write_record(folder / "photos.json", asdict(photos))
            rights = {"licence": licence, "attribution": attribution}
            while True:
                number = 1 + max((int(p.name) for p in to.iterdir() if p.name.isdecimal()), default=0)
                folder = folder.rename(folder.with_name(str(number)))
                write_model_card(folder, record, model=to.name, checks=checks, faults=faults, **rights)
                write_digests(folder)
                if version := publish(folder, to):
                    return version
    except (OSError, tf.errors.OpError) as error:
        raise TrainingError(
            f"Cannot write the model folder {to} ({error}); free space or fix permissions, then rerun `export`."
        ) from error


def publish(folder: Path, to: Path) -> Path | None:
    """Move `folder` to `to` unless nothing is new; return the newest version."""
    version, newest = to / folder.name, to / str(int(folder.name) - 1)
    if adds_nothing(folder, newest):
        print(f"{newest} has the same images and all these facts on its model card; no version is written.")
        return newest
    try:
        folder.rename(version)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return None  # another export has taken the number
    print(f"Wrote {version}.")
    return version


def check_model_name(name: str) -> None:
    """Raise TrainingError unless a model can be served as `name`."""
    if not name.isprintable() or not name.strip():
        raise TrainingError(
            f"The folder's name {name!r} becomes the model's name; choose one of printable characters in --to."
        )


def adds_nothing(version: Path, newest: Path) -> bool:
    """Return whether `version` has the images of `newest` and no other facts."""
    try:
        return read_facts(version) <= read_facts(newest) and np.array_equal(read_golden(version), read_golden(newest))
    except (OSError, KeyError, ValueError, tf.errors.OpError):  # `newest` is missing or damaged
        return False


def read_facts(version: Path) -> set[str]:
    """Return the model card's lines about data, evaluation and faults."""
    sections = (version / "model_card.md").read_text(encoding="utf-8").split("\n## ")
    facts = [section for section in sections if section.startswith(("Data\n", "Evaluation\n", "Known faults\n"))]
    nothing = ("not stated", NOT_EVALUATED, NO_FAULT)
    return {line for section in facts for line in section.splitlines() if not line.endswith(nothing)}


def read_golden(version: Path) -> NDArray[np.uint8]:
    """Return the golden digests of the SavedModel in `version`."""
    golden = tf.saved_model.load(str(version)).signatures["golden"]
    return np.asarray(golden(index=tf.range(len(GOLDEN_SEEDS), dtype=tf.int64))["digests"])


def write_digests(folder: Path) -> None:
    """Write `folder`/SHA256SUMS of all other files, for `sha256sum -c`; call it last. Raises OSError."""
    sums, lines = folder / "SHA256SUMS", []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != sums):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    write_atomically(sums, "".join(lines))


def save_fault_images(generator: TrainedGenerator, faults: Sequence[Fault], folder: Path) -> None:
    """Write the image of each fault to `folder`/<seed>.png. Raises OSError."""
    if faults:
        folder.mkdir()
        images = generator.generate_images(np.array([fault.seed for fault in faults]))
        for fault, image in zip(faults, images, strict=True):
            Image.fromarray(image).save(folder / f"{fault.seed}.png")


def save_verified(generator: TrainedGenerator, folder: Path, *, model_name: str) -> str:
    """Write and verify the SavedModel; return the checks in words. Raises TrainingError."""
    seeds = np.random.default_rng(0).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)
    servable = Servable(generator, sequential=False)
    if sizes := find_unequal_sizes(servable, seeds):
        print(
            f"On this machine, batches of {', '.join(map(str, sizes))} give other bits than batches of 1. "
            "The exported model runs the rows of a batch one by one."
        )
        servable = Servable(generator, sequential=True)
        if find_unequal_sizes(servable, seeds):
            raise TrainingError(f"An image depends on its batch even if rows run one by one; {REPORT_BUG}.")
    save_servable(servable, folder, model_name=model_name)
    difference = check_saved_model(generator, folder, seeds)
    rows = "Rows run one by one." if servable.sequential else "All rows run at once; odd batches are padded by one row."
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS", "TensorFlow's default")
    return f"""\
- The fused generator differs from the Keras one by at most {difference}/255 ({len(seeds)} seeds).
- Every batch size from 1 to {len(seeds)} gives the floats of batch size 1, bit for bit ({len(seeds)} seeds).
  {rows} Verified on {platform.machine()}. Threads per operation: {threads}; use as many in a model server."""


def find_unequal_sizes(servable: Servable, seeds: NDArray[np.int64]) -> list[int]:
    """Return the batch sizes that give other floats than batches of 1."""
    spec = tf.TensorSpec((None, servable.latent_dim), tf.float32)  # floats: few wrong last bits change pixels
    compute_floats = tf.function(servable.compute_floats, input_signature=[spec], autograph=False)
    latents = tf.constant(sample_latents(seeds, servable.latent_dim))
    expected = np.concatenate([compute_floats(latents[i : i + 1]) for i in range(len(seeds))])
    return [n for n in range(1, len(seeds) + 1) if not np.array_equal(compute_floats(latents[:n]), expected[:n])]


def save_servable(servable: Servable, folder: Path, *, model_name: str) -> None:
    """Write the SavedModel, batching parameters and warm-up requests."""
    tf.saved_model.save(servable, str(folder), signatures=servable.signatures())
    (folder / "batching_params.pbtxt").write_text(BATCHING_PARAMETERS, encoding="utf-8")
    warm_up = folder / "assets.extra" / "tf_serving_warmup_requests"
    warm_up.parent.mkdir()  # without warm-up, a first request takes 10 times as long
    with tf.io.TFRecordWriter(str(warm_up)) as writer:
        for size in ALLOWED_BATCH_SIZES:
            rows = {
                ("generate", "seeds"): np.arange(size, dtype=np.int64),
                ("serving_default", "latents"): np.zeros((size, servable.latent_dim), np.float32),
            }
            for (signature, name), values in rows.items():
                spec = {"name": model_name, "signature_name": signature}
                request = {"model_spec": spec, "inputs": {name: tf.make_tensor_proto(values)}}
                writer.write(prediction_log_pb2.PredictionLog(predict_log={"request": request}).SerializeToString())


def check_saved_model(generator: TrainedGenerator, folder: Path, seeds: NDArray[np.int64]) -> int:
    """Return the largest pixel difference to Keras's images. Raises TrainingError beyond 1, or if calls disagree."""
    signatures = tf.saved_model.load(str(folder)).signatures
    generate = signatures["generate"]
    golden = signatures["golden"](index=tf.range(len(GOLDEN_SEEDS), dtype=tf.int64))
    golden_images = np.concatenate([generate(seeds=seed[tf.newaxis])["images"] for seed in golden["seeds"]])
    if not np.array_equal(golden["digests"], pixel_digests(golden_images)):
        raise TrainingError(f"The written graph gives other pixels than its golden digests; {REPORT_BUG}.")
    images = np.asarray(generate(seeds=tf.constant(seeds))["images"])
    large_call = np.asarray(generate(seeds=tf.constant(np.concatenate([seeds, seeds[:33]])))["images"])
    if not np.array_equal(large_call, np.concatenate([images, images[:33]])):
        raise TrainingError(f"The written graph gives other pixels in calls of over {len(seeds)} seeds; {REPORT_BUG}.")
    difference = int(np.abs(images.astype(np.int16) - generator.generate_images(seeds)).max())
    if difference > 1:
        raise TrainingError(f"The fused generator differs from the Keras one by {difference}/255; {REPORT_BUG}.")
    return difference
