"""The small JSON files of a run: written whole, and read with one sentence where they are damaged."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import RecordError


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all, also after a power cut. Raises OSError."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
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
