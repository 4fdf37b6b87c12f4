"""Follows the numbered folders of one model and loads the newest.

The old version serves until the new one is loaded. Nothing here imports TensorFlow or gRPC.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # importing it imports TensorFlow
    from serving.model_server.servable import Servable

log = logging.getLogger(__name__)
State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]  # as TensorFlow Serving's ModelVersionStatus.State
Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, eq=False)
class VersionStatus:
    """A version's state, its servable while AVAILABLE, its error if any."""

    state: State
    servable: "Servable | None" = None
    error: str = ""


class VersionWatcher:
    """Serves the newest version in `base_path` that `load` can load.

    It polls every `poll_interval_s`. A version is unloaded only after another is AVAILABLE, or when no version folder
    is left. A version that `load` raised for ends at once, and is tried again only after its folder changes. A base
    path that can't be listed changes nothing.
    """

    def __init__(self, base_path: Path, load: "Callable[[Path], Servable]", *, poll_interval_s: float) -> None:
        self.statuses: Mapping[int, VersionStatus] = {}  # of all versions since the start; replaced, never changed
        self.has_served = threading.Event()  # set when the first version is AVAILABLE
        self._base_path = base_path
        self._load = load
        self._poll_interval_s = poll_interval_s
        self._broken: dict[int, Fingerprint] = {}
        self._listing_error: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="version-watcher", daemon=True)

    @property
    def servables(self) -> "dict[int, Servable]":
        """The servables of AVAILABLE versions; usable also after they are unloaded."""
        return {version: found.servable for version, found in self.statuses.items() if found.servable is not None}

    def start(self) -> None:
        """Poll once, then in a thread."""
        self.poll()
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """Stop polling; wait up to `timeout_s` for a load in progress."""
        self._stop.set()
        self._thread.join(timeout_s)

    def poll(self) -> None:
        """List the folders once; load and unload versions. Not thread-safe."""
        try:
            folders = version_folders(self._base_path)
        except OSError as error:
            if error.strerror != self._listing_error:
                log.warning("%s can't be listed (%s).", self._base_path, error.strerror)
            self._listing_error = error.strerror
            return
        self._listing_error = None
        served = self._load_newest(folders)
        for version in self.servables:
            if not folders or (served is not None and version != served):
                self._set(version, "UNLOADING")
                self._set(version, "END")

    def _load_newest(self, folders: Mapping[int, Path]) -> int | None:
        """Load the newest version of `folders` that works; return it, or None."""
        for version in sorted(folders, reverse=True):
            if version in self.servables:
                return version
            # Before the load: a change meanwhile is a reason to try again.
            content = fingerprint(folders[version])
            if self._broken.get(version) == content:
                continue
            self._set(version, "START")
            self._set(version, "LOADING")
            try:
                servable = self._load(folders[version])
            except Exception as error:  # the version that serves must go on
                log.exception("version %d in %s can't be loaded", version, folders[version])
                self._broken[version] = content
                self._set(version, "END", error=f"{type(error).__name__}: {error}")
                continue
            self._set(version, "AVAILABLE", servable)
            self.has_served.set()
            return version
        return None

    def _set(self, version: int, state: State, servable: "Servable | None" = None, *, error: str = "") -> None:
        log.info("version %d: %s", version, state)
        self.statuses = {**self.statuses, version: VersionStatus(state, servable, error)}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception:  # without this thread no new version would be loaded
                log.exception("%s can't be polled", self._base_path)
            self._stop.wait(self._poll_interval_s)


def version_folders(base_path: Path) -> dict[int, Path]:
    """Return the folders in `base_path` with numbers as names; or raise OSError."""
    return {
        int(path.name): path
        for path in sorted(base_path.iterdir())  # always the same one of "01" and "1"
        if re.fullmatch("[0-9]{1,19}", path.name) and int(path.name) < 2**63 and path.is_dir()  # int64
    }


def fingerprint(folder: Path) -> Fingerprint:
    """Return a value that changes with any file in `folder`."""
    found = []
    for path in (folder, *sorted(folder.rglob("*"))):
        with suppress(OSError):  # removed since it was listed, which is a change, too
            stat = path.stat()
            found.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)
