"""Data-parallel training on several GPUs or machines through tf.distribute.

Each device holds a replica of the model. The losses do not depend on the number of replicas, up to rounding: batch
statistics cover all rows of a batch, and each replica takes its rows of the random numbers drawn for the whole batch.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
from numpy.typing import NDArray

from training.errors import TrainingError

Tensor = Any
Batch = tuple[NDArray[Any], ...]


@contextmanager
def strategy_scope(name: str, run: Path) -> Iterator[Path]:
    """Train on all devices of the strategy `name`; yield the run folder.

    "mirrored" uses all GPUs of this machine, "multi-worker" those of all machines in TF_CONFIG. Among several workers,
    only the chief gets `run` itself. Every other worker gets a temporary copy to resume from.
    Raises TrainingError if the strategy cannot start, or another worker is gone.
    """
    if keras.backend.backend() != "tensorflow":
        raise TrainingError(f"--strategy {name} needs TensorFlow; unset KERAS_BACKEND, or train on a single device.")
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy() if name == "mirrored" else _connect_workers()
    with strategy.scope(), TemporaryDirectory() as temporary:
        print(f"{strategy.num_replicas_in_sync} replicas share each batch.", flush=True)
        worker_run = run
        if not strategy.extended.should_checkpoint:  # not the chief
            worker_run = Path(temporary) / run.name
            worker_run.mkdir()
            for file in run.glob("*.*"):
                if file.suffix in (".json", ".npz", ".csv"):
                    shutil.copy(file, worker_run)
        try:
            yield worker_run
        except tf.errors.OpError as error:
            if name == "mirrored":
                raise
            raise TrainingError(
                "Another worker stopped or cannot be reached; start all workers again to resume from the last "
                "checkpoint."
            ) from error


def _connect_workers() -> Any:
    """Return the strategy once all workers of TF_CONFIG are connected. Raises TrainingError if it is wrong."""
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        if not resolver.cluster_spec().jobs:
            raise ValueError("it names no workers")
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"TF_CONFIG does not describe a cluster ({error}); set it to something like "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}, '
            "with another index on each host."
        ) from error


def count_replicas() -> int:
    """Return the number of replicas, 1 outside `strategy_scope`."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def check_equal_shares(batch_size: int) -> None:
    """Raise TrainingError if the replicas cannot share a batch equally."""
    replicas = count_replicas()
    if batch_size % replicas:
        raise TrainingError(
            f"batch_size is {batch_size}, which {replicas} replicas cannot share equally; "
            f"set it to a multiple of {replicas}."
        )


def is_chief() -> bool:
    """Return whether this worker has the run's folder, not a temporary copy."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return bool(tf.distribute.get_strategy().extended.should_checkpoint)


def draw_rows(draw: Callable[..., Tensor], shape: tuple[Any, ...], *limits: Any, seed: Any) -> Tensor:
    """Return `draw(shape, *limits, seed=seed)`; a replica gets its rows of the draw for the whole batch."""
    replicas = count_replicas()
    if replicas == 1:
        return draw(shape, *limits, seed=seed)
    import tensorflow as tf

    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return draw((replicas * shape[0], *shape[1:]), *limits, seed=seed)[replica * shape[0] :][: shape[0]]


def distribute_batches(batches: Callable[[], Iterator[Batch]]) -> Any:
    """Return `batches()` in the form that Keras's fit takes.

    Under TensorFlow this is a dataset; with several replicas it yields one part of a batch per replica. The batches
    never end, and each has the same number of rows, a multiple of the number of replicas.
    """
    if keras.backend.backend() != "tensorflow":
        return batches()
    import tensorflow as tf

    replicas = count_replicas()
    if replicas == 1:
        return build_dataset(batches())

    def build_worker_dataset(context: Any) -> Any:
        count = replicas // context.num_input_pipelines  # replicas of this worker, which has one pipeline
        worker_replicas = range(context.input_pipeline_id * count, (context.input_pipeline_id + 1) * count)

        def split_batches() -> Iterator[Batch]:
            for batch in batches():
                rows = len(batch[0]) // replicas
                for replica in worker_replicas:
                    yield tuple(array[replica * rows :][:rows] for array in batch)

        return build_dataset(split_batches())

    return tf.distribute.get_strategy().distribute_datasets_from_function(build_worker_dataset)


def build_dataset(batches: Iterator[Batch]) -> Any:
    """Return `batches` as a tf.data.Dataset that prefetches one batch.

    The batches never end and have equal shapes. Dataset.from_generator is slower: under Python 3.11 and later it maps
    and clears memory for every tensor above 128 KiB (TensorFlow's ApplyPython311MemoryPatch), which costs 3,800 page
    faults and 7 % of a step at 64 px.
    """
    import tensorflow as tf

    first = next(batches)
    all_batches = chain([first], batches)

    def next_batch(_: Tensor) -> tuple[Tensor, ...]:
        batch = tf.numpy_function(lambda: next(all_batches), [], [array.dtype for array in first])
        return tuple(tf.ensure_shape(tensor, array.shape) for tensor, array in zip(batch, first, strict=True))

    return tf.data.Dataset.counter().map(next_batch).prefetch(1)
