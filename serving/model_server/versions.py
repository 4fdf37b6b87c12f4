"""Follows the numbered folders of one model and loads the newest.

The old version serves until the new one is loaded. Nothing here imports TensorFlow or gRPC.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

MAX_VERSION = 2**63 - 1  # of int64

log = logging.getLogger(__name__)
S = TypeVar("S")  # a servable: the type that `load` returns


class VersionState(IntEnum):
    """The state of a version, with the numbers of TensorFlow Serving's ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """The state of one version; `error` is why its load failed."""

    state: VersionState
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Snapshot(Generic[S]):
    """All versions at one moment; a reference keeps its servables usable."""

    statuses: Mapping[int, VersionStatus]  # of all versions since the start
    servables: Mapping[int, S]  # of AVAILABLE versions


Fingerprint = tuple[tuple[str, int, int, int], ...]


class VersionWatcher(Generic[S]):
    """Serves the newest version in `base_path` that `load` can load.

    It polls every `poll_interval_s`. A version is unloaded only after another is AVAILABLE, or when no version folder
    is left. A version that `load` raised for ends at once, and is tried again only after its folder changes. A base
    path that can't be listed changes nothing.
    """

    def __init__(self, base_path: Path, load: Callable[[Path], S], *, poll_interval_s: float) -> None:
        self._base_path = base_path
        self._load = load
        self._poll_interval_s = poll_interval_s
        self._changed = threading.Condition()  # its lock guards _snapshot, which only the polling thread replaces
        self._snapshot: Snapshot[S] = Snapshot(MappingProxyType({}), MappingProxyType({}))
        self._broken: dict[int, Fingerprint] = {}
        self._listing_error: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="version-watcher", daemon=True)

    @property
    def snapshot(self) -> Snapshot[S]:
        """All versions now."""
        with self._changed:
            return self._snapshot

    def wait_for(self, holds: Callable[[Snapshot[S]], bool], *, timeout_s: float) -> bool:
        """Return True once `holds` is true of the snapshot, False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self._snapshot), timeout_s)

    def start(self) -> None:
        """Start the polling thread."""
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
            self._say_once(f"{self._base_path} can't be listed ({error.strerror}).")
            return
        self._listing_error = None
        self._broken = {version: content for version, content in self._broken.items() if version in folders}
        served = self._load_newest(folders)
        for version in self.snapshot.servables:
            if not folders or (served is not None and version != served):
                self._set(version, VersionState.UNLOADING)
                self._set(version, VersionState.END)

    def _load_newest(self, folders: Mapping[int, Path]) -> int | None:
        """Load the newest version of `folders` that works; return it, or None."""
        for version in sorted(folders, reverse=True):
            if version in self.snapshot.servables:
                return version
            # Before the load: a change meanwhile is a reason to try again.
            content = fingerprint(folders[version])
            if self._broken.get(version) == content:
                continue
            self._set(version, VersionState.START)
            self._set(version, VersionState.LOADING)
            try:
                servable = self._load(folders[version])
            except Exception as error:  # the version that serves must go on
                log.exception("version %d in %s can't be loaded", version, folders[version])
                self._broken[version] = content
                self._set(version, VersionState.END, error=f"{type(error).__name__}: {error}")
                continue
            self._broken.pop(version, None)
            self._set(version, VersionState.AVAILABLE, servable=servable)
            return version
        return None

    def _set(self, version: int, state: VersionState, *, servable: S | None = None, error: str | None = None) -> None:
        """Replace the snapshot; only an AVAILABLE version has a servable."""
        log.info("version %d: %s", version, state.name)
        with self._changed:
            statuses = {**self._snapshot.statuses, version: VersionStatus(state, error)}
            servables = {v: s for v, s in self._snapshot.servables.items() if v != version}
            if servable is not None:
                servables[version] = servable
            self._snapshot = Snapshot(MappingProxyType(statuses), MappingProxyType(servables))
            self._changed.notify_all()

    def _say_once(self, sentence: str) -> None:
        if sentence != self._listing_error:
            log.warning("%s", sentence)
        self._listing_error = sentence

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
        if re.fullmatch("[0-9]{1,19}", path.name) and int(path.name) <= MAX_VERSION and path.is_dir()
    }


def fingerprint(folder: Path) -> Fingerprint:
    """Return a value that changes with any file in `folder`."""
    found = []
    for path in (folder, *sorted(folder.rglob("*"))):
        try:
            stat = path.stat()
        except OSError:  # removed since it was listed, which is a change, too
            continue
        found.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)
