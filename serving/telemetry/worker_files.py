"""Files in memory in which all workers of one gateway count.

The whole folder is allocated before the workers start: a write to a mapped page that no longer fits into /dev/shm
would kill the worker with SIGBUS. A single worker counts in its own memory.

Gateway and workers hold a lock on their folder. A folder without one is of a gateway that was killed, and is removed.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from prometheus_client import values

from serving.settings import SettingsError

SHARED_MEMORY = "/dev/shm"
PREFIX = "ringo-workers-"
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax")  # as prometheus_client names its files
FILE_BYTES = 2**19  # 140 pairs of resource and outcome, at 3.6 kB for each in the histogram


def create_folder(workers: int) -> Path:
    """Return a folder for counts, in memory or else in $TMPDIR.

    Raises SettingsError if none has the room.
    """
    counting, reasons = workers if workers > 1 else 0, []
    for parent in (SHARED_MEMORY, None):
        folder = None
        try:
            _remove_abandoned(Path(parent or tempfile.gettempdir()))
            folder = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)  # until the last of our processes ends
            folder = folder.rename(folder.with_name(folder.name[1:]))
            for number in range(counting):
                for kind in KINDS:
                    with (folder / f"{kind}_{number}.db").open("wb") as file:
                        os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
            return folder
        except OSError as error:
            reasons.append(error.strerror)
            if folder is not None:
                shutil.rmtree(folder)
    mebibytes = counting * len(KINDS) * FILE_BYTES // 2**20
    room = f"a writable folder with {mebibytes} MiB of room, which {SHARED_MEMORY} does not have: {reasons[0]}"
    raise SettingsError("TMPDIR", os.environ.get("TMPDIR", "/tmp"), room)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, or of another user
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def use(folder: Path, number: int) -> None:
    """Count in the files of worker `number`; end its predecessor's gauges.

    Call it in the worker, before serving/telemetry/metrics.py is imported.
    """
    if not (folder / f"{KINDS[0]}_{number}.db").exists():
        return
    for kind in KINDS[2:]:  # the gauges
        with (folder / f"{kind}_{number}.db").open("r+b") as file:
            file.write(bytes(FILE_BYTES))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
