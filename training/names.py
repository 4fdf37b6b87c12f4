"""The name of a model, for the Makefile: python training/names.py FOLDER."""

import os
import re
import sys
import unicodedata
import zlib
from pathlib import Path


def model_name(folder: Path) -> str:
    """Return the model's name for `folder` in ASCII, else photos- and a checksum."""
    text = unicodedata.normalize("NFKD", folder.resolve().name.casefold())
    name = re.sub("[^a-z0-9]+", "-", re.sub(r"[\u0300-\u036f]", "", text)).strip("-")
    if not name:
        return f"photos-{zlib.crc32(text.encode(errors='surrogateescape')):08x}"
    return "my-apple" if name == "apple" else name  # models/apple is the bundled model


if __name__ == "__main__":
    print(model_name(Path(os.path.expanduser(sys.argv[1]))))  # noqa: PTH111 (Path.expanduser may raise RuntimeError)
