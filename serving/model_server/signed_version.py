"""Whether a version folder is what the owner of a key signed: for the embedded model server, as a graph is code.

`SHA256SUMS` lists the digest of every file of the folder, as `sha256sum -c` reads it, and `SHA256SUMS.sig` is the raw
Ed25519 signature of its bytes. What is loaded is a private copy of the very bytes that were checked, so that nobody can
exchange a file between the check and its use.
"""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from serving.model_server.versions import VersionRefused

DIGESTS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
SIGNATURE_BYTES = 64  # of Ed25519
MAX_DIGESTS_BYTES = 2**20  # ten thousand files
MAX_FILE_BYTES = 2**32  # 4 GiB: a sparse file of any size would keep the reader busy for days
CHUNK_BYTES = 2**20


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Return the key in the PEM file `path`; raise ValueError, with the reason, if it is something else."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror) from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("it holds something else")
    return key


@contextmanager
def verified_copy(folder: Path, key: Ed25519PublicKey) -> Iterator[Path]:
    """Yield a copy of the version in `folder`, for nobody but this user, that is gone after the `with` block.

    Raises:
        VersionRefused: the owner of `key` did not sign it, or a file is missing, more, or another than was signed.
    """
    digests = _signed_digests(folder, key)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    if more := sorted(found - digests.keys() - {DIGESTS, SIGNATURE}):
        raise VersionRefused(f"{more[0]!r} is not among the files that were signed.")
    sizes = {name: _check(folder, name, digest) for name, digest in digests.items()}
    with tempfile.TemporaryDirectory(prefix="ringo-version-") as aside:
        copy = Path(aside) / folder.name
        for name, digest in digests.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            with (copy / name).open("xb") as out:
                _check(folder, name, digest, sizes[name], out)
        yield copy


def _signed_digests(folder: Path, key: Ed25519PublicKey) -> dict[str, str]:
    """Return the digest of each file by its name in `folder`, which `key` has signed, or raise VersionRefused."""
    with _opened(folder, SIGNATURE) as file:
        signature = file.read(SIGNATURE_BYTES + 1)
    with _opened(folder, DIGESTS) as file:
        digests = file.read(MAX_DIGESTS_BYTES)
    try:
        key.verify(signature, digests)
    except InvalidSignature:
        raise VersionRefused(f"{SIGNATURE} is not the signature of {DIGESTS} by the key of --verify-key.") from None
    # Signed, so to be trusted: what can't be read is a mistake, and "../" another one.
    found = {}
    for line in digests.decode("utf-8", "surrogateescape").splitlines():
        parts = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        name = parts and os.path.normpath(parts[2])
        if not parts or not name or name.startswith(("/", "..")):
            raise VersionRefused(f"{DIGESTS} has a line that names no file of the folder: {line!r}.")
        found[name] = parts[1]
    return found


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file of `folder`; raise VersionRefused if it is missing, a link, or no regular file."""
    try:
        # Without waiting: opening a FIFO would, for ever.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise VersionRefused(f"{name!r} can't be read ({error.strerror}).") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise VersionRefused(f"{name!r} is not a regular file.")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _check(
    folder: Path, name: str, digest: str, max_bytes: int = MAX_FILE_BYTES, copy_to: BinaryIO | None = None
) -> int:
    """Return how many bytes the file has whose SHA-256 is `digest`, and copy them; raise VersionRefused for another.

    No more than `max_bytes` are read.
    """
    found, size = hashlib.sha256(), 0
    with _opened(folder, name) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise VersionRefused(f"{name!r} has more than {max_bytes} bytes.")
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise VersionRefused(f"{name!r} grows while it is read.")
            found.update(chunk)
            if copy_to is not None:
                copy_to.write(chunk)
    if found.hexdigest() != digest:
        raise VersionRefused(f"{name!r} is another than the one that was signed.")
    return size
