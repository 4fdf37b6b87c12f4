"""Several GPUs or machines share each batch, through tf.distribute: each holds a replica of the model.

The losses do not depend on the number of replicas, up to rounding: the statistics of a batch are those of all its
rows, and random numbers are drawn for all of them, of which each replica takes its own.
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
def share_batches(strategy: str, run: Path) -> Iterator[Path]:
    """For the time of a `with` block, build and train for all devices that `strategy` finds; yield the run folder.

    "mirrored" are all GPUs of this machine, "multi-worker" those of all machines in TF_CONFIG.
    Only the chief of several workers gets `run` itself: another one gets a copy to resume from, and what it writes
    there is thrown away.

    Raises:
        TrainingError: there is nothing to share with, or another worker is gone.
    """
    if keras.backend.backend() != "tensorflow":
        raise TrainingError(f"--strategy {strategy} is TensorFlow's: unset KERAS_BACKEND, or train on a single device.")
    import tensorflow as tf

    chosen = tf.distribute.MirroredStrategy() if strategy == "mirrored" else join_workers()
    with chosen.scope(), TemporaryDirectory() as scratch:
        print(f"{chosen.num_replicas_in_sync} replicas share each batch.", flush=True)
        mine = run
        if not chosen.extended.should_checkpoint:  # not the chief
            mine = Path(scratch) / run.name
            mine.mkdir()
            for file in run.glob("*.*"):
                if file.suffix in (".json", ".npz", ".csv"):
                    shutil.copy(file, mine)
        try:
            yield mine
        except tf.errors.OpError as error:
            if strategy == "mirrored":
                raise
            raise TrainingError(
                "Another worker is gone, or cannot be reached: start all of them again, and they go on from the last "
                "checkpoint."
            ) from error


def join_workers() -> Any:
    """Return tf.distribute's strategy once all workers of TF_CONFIG are there. Raises TrainingError if it has none."""
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        if not resolver.cluster_spec().jobs:
            raise ValueError("it names no workers")
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            "--strategy multi-worker needs TF_CONFIG, such as "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}, '
            f"with another index on each host: {error}."
        ) from error


def count_replicas() -> int:
    """Return how many replicas share a batch, 1 outside `share_batches`."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def draw_rows(draw: Callable[..., Tensor], shape: tuple[Any, ...], *limits: Any, seed: Any) -> Tensor:
    """Return `draw(shape, *limits, seed=seed)` or, in a replica, its rows of what one device would draw for all."""
    replicas = count_replicas()
    if replicas == 1:
        return draw(shape, *limits, seed=seed)
    import tensorflow as tf

    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return draw((replicas * shape[0], *shape[1:]), *limits, seed=seed)[replica * shape[0] :][: shape[0]]


def share_out(batches: Callable[[], Iterator[Batch]]) -> Any:
    """Return what Keras's fit takes: `batches()`, under TensorFlow as a dataset, in one part per replica if several.

    They never end, and every batch has as many rows, a multiple of the number of replicas.
    """
    if keras.backend.backend() != "tensorflow":
        return batches()
    import tensorflow as tf

    replicas = count_replicas()
    if replicas == 1:
        return dataset(batches())

    def of_worker(context: Any) -> Any:
        here = replicas // context.num_input_pipelines  # replicas of this worker, which has one pipeline
        mine = range(context.input_pipeline_id * here, (context.input_pipeline_id + 1) * here)

        def parts() -> Iterator[Batch]:
            for batch in batches():
                rows = len(batch[0]) // replicas
                for replica in mine:
                    yield tuple(array[replica * rows :][:rows] for array in batch)

        return dataset(parts())

    return tf.distribute.get_strategy().distribute_datasets_from_function(of_worker)


def dataset(batches: Iterator[Batch]) -> Any:
    """Return the endless `batches`, all of the same shapes, as a tf.data.Dataset that draws the next one ahead.

    Not by Dataset.from_generator: under Python 3.11 and later that has the whole process map and clear memory anew for
    every tensor above 128 KiB (TensorFlow's ApplyPython311MemoryPatch), 3,800 page faults and 7 % of a step at 64 px.
    """
    import tensorflow as tf

    first = next(batches)
    from_first = chain([first], batches)

    def draw(_: Tensor) -> tuple[Tensor, ...]:
        drawn = tf.numpy_function(lambda: next(from_first), [], [array.dtype for array in first])
        return tuple(tf.ensure_shape(tensor, array.shape) for tensor, array in zip(drawn, first, strict=True))

    return tf.data.Dataset.counter().map(draw).prefetch(1)
