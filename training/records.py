"""The small files of a run: JSON written whole and read with one sentence where damaged, and columns of CSV.

Of its large one, the checkpoint, only the number of batches is read here, without Keras.
"""

import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from training.errors import RecordError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all, also after a power cut. Raises OSError."""
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` to `path` as indented JSON, whole or not at all. Raises OSError."""
    write_whole(path, json.dumps(record, indent=2) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Return what `write_record` wrote to `path`. Raises RecordError if it is missing, damaged or something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path} cannot be read: it holds no JSON object.")
    return record


def read_batches_done(checkpoint: Path) -> int:
    """Return the number of batches before `checkpoint`, 0 if there is no such file. Raises RecordError if damaged."""
    if not checkpoint.exists():
        return 0
    try:
        with checkpoint.open("rb") as stream, np.load(stream) as file:
            return int(file["step"])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise RecordError(f"{checkpoint} cannot be read: {error}.") from error


def read_curves(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of the CSV file `path`, all of one length; empty if there is no file or no whole row.

    A row that is not all finite numbers is left out: a full disk tears the last one.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = [*csv.reader(file)] or [[]]
    numbers = [[_number(text) for text in row] for row in rows if len(row) == len(names)]
    whole = np.array([row for row in numbers if all(map(math.isfinite, row))], np.float64)
    return dict(zip(names, whole.T, strict=True)) if len(whole) else {}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
