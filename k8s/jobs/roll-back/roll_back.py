"""Serve an older version again, as a copy with the next number.

Usage: roll_back.py MODEL_FOLDER VERSION, which is a number or `previous`.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def works(version: Path) -> bool:
    """Return whether TensorFlow loads `version` into a session, as TensorFlow Serving does, and computes seed 0."""
    import tensorflow as tf

    session = tf.compat.v1.Session(graph=tf.Graph())
    try:
        with session.graph.as_default():
            signature = tf.compat.v1.saved_model.load(session, ["serve"], str(version)).signature_def["generate"]
            session.run(signature.outputs["images"].name, {signature.inputs["seeds"].name: [0]})
    except (OSError, KeyError, ValueError, RuntimeError, tf.errors.OpError) as error:
        print(f"Version {version.name} does not work: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


def roll_back(folder: Path, chosen: str) -> str:
    """Copy the version `chosen` to the next number; return a sentence.

    `previous` is the last working version before the newest. Raises SystemExit, with a sentence, if there is none.
    """
    versions = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    candidates = versions[-2::-1] if chosen == "previous" else [path for path in versions if path.name == chosen]
    good = next((path for path in candidates if works(path)), None)
    if good is None:
        found = ", ".join(path.name for path in versions) or "none"
        raise SystemExit(f"No version to go back to: asked for {chosen}, versions in {folder}: {found}.")
    number = int(versions[-1].name) + 1
    with tempfile.TemporaryDirectory(dir=folder, prefix=".roll-back-") as aside:
        shutil.copytree(good, Path(aside) / str(number))
        (Path(aside) / str(number)).rename(folder / str(number))
    return f"Version {number} is a copy of version {good.name}."


if __name__ == "__main__":
    print(roll_back(Path(sys.argv[1]), sys.argv[2]))
