"""Sign a version folder: a model is code, and a model server may want to know whose.

`SHA256SUMS` lists the digest of every file of the folder, as `sha256sum -c` reads it, and `SHA256SUMS.sig` is the raw
Ed25519 signature of its bytes: plain sha256sum and openssl check both.
serving/model_server/signed_version.py knows the same format.
"""

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from training.errors import ExportError

DIGESTS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in the PEM file `path`. Raises ExportError if it is something else, or has a passphrase."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ExportError(f"--sign is {str(path)!r}: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ExportError(
            f"--sign is {str(path)!r}: allowed is a PEM file with a private Ed25519 key without a passphrase, "
            "as `openssl genpkey -algorithm ed25519` makes it."
        )
    return key


def sign_version(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write the digests of all files in `folder` and their signature by `key` into it. Raises OSError.

    To be called before the folder gets its name: a version never changes afterwards.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    digests = "".join(lines).encode("utf-8", "surrogateescape")
    (folder / DIGESTS).write_bytes(digests)
    (folder / SIGNATURE).write_bytes(key.sign(digests))
