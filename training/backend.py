"""Keras's backend, imported when it is needed: it takes 4 s."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec

from training.errors import TrainingError

BACKENDS = ("tensorflow", "jax")


def require_backend() -> str:
    """Return the name of the backend that KERAS_BACKEND asks for. Raises TrainingError if it can't train here."""
    backend = os.environ.get("KERAS_BACKEND", BACKENDS[0])
    if backend not in BACKENDS or find_spec(backend) is None:
        raise TrainingError(f"KERAS_BACKEND is {backend!r}: allowed are {' and '.join(BACKENDS)}, installed.")
    return backend


def import_backend() -> None:
    """Import it without the greeting that TensorFlow writes past Python to the terminal, log level or not."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it logs as errors are remarks: real ones are raised
    backend = require_backend()
    sys.stderr.flush()
    ours, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import_module(backend)
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(nowhere)
