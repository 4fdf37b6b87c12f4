"""Keras and its backend, imported on demand because they take 4 s."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from training.errors import TrainingError

BACKENDS = ("tensorflow", "jax")


def require_backend() -> str:
    """Return the backend named by KERAS_BACKEND. Raises TrainingError if it is unknown or not installed."""
    backend = os.environ.get("KERAS_BACKEND", BACKENDS[0])
    if backend not in BACKENDS or find_spec(backend) is None:
        raise TrainingError(
            f"KERAS_BACKEND is {backend!r}, which is unknown or not installed; set it to {' or '.join(BACKENDS)}."
        )
    return backend


def import_backend() -> None:
    """Import the backend and Keras without TensorFlow's messages on file descriptor 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it logs harmless remarks as errors; real errors are raised
    # Without oneDNN, the default for processors without AVX-512 VNNI, a step takes twice as long, and an image depends
    # on the size of its batch.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    backend = require_backend()
    # Settings of Keras, such as float16 in ~/.keras/keras.json, would train another model.
    for name in [name for name in os.environ if name.startswith("KERAS_")]:
        del os.environ[name]
    os.environ |= {"KERAS_BACKEND": backend, "KERAS_HOME": os.devnull}
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    # Imports call weak references and destructors, in which Python drops a KeyboardInterrupt. A signal mask would not
    # do: a thread of NumPy would take the signal.
    received: list[int] = []
    try:
        with handle_signals(lambda number, _: received.append(number)):
            for name in filter(find_spec, (backend, "tensorflow", "keras")):  # TensorFlow writes all SavedModels
                import_module(name)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
    if received:
        signal.raise_signal(received[0])


@contextmanager
def handle_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by `handler` during a `with` block."""
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)
