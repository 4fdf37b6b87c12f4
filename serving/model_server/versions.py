"""The numbered folders of one model, followed: the newest is loaded, and the old one serves until the new one does.

What loads a folder is given; nothing here knows TensorFlow or gRPC.
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

MAX_VERSION = 2**63 - 1  # the protocol carries versions as int64

log = logging.getLogger(__name__)
S = TypeVar("S")  # a servable: whatever the given loader returns


class VersionState(IntEnum):
    """Where a version is in its life; the numbers are those of TensorFlow Serving's ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """The state of one version; `error` is one sentence where it ended because it could not be loaded."""

    state: VersionState
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Snapshot(Generic[S]):
    """What holds at one moment. Whoever keeps it keeps its servables, also when they are unloaded meanwhile."""

    statuses: Mapping[int, VersionStatus]  # of every version ever seen
    servables: Mapping[int, S]  # of the versions that are AVAILABLE


Fingerprint = tuple[tuple[str, int, int, int], ...]


class VersionWatcher(Generic[S]):
    """Serves the newest version folder in `base_path` that `load` can load, and looks again every `poll_interval_s`.

    A version is unloaded only after another is AVAILABLE, or when no version folder is left. One that `load` raised
    for ends at once and is tried again only when its folder changes. A base path that can't be listed changes nothing.
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
        """What holds now."""
        with self._changed:
            return self._snapshot

    def wait_for(self, holds: Callable[[Snapshot[S]], bool], *, timeout_s: float) -> bool:
        """Return True as soon as `holds` is true of the snapshot, or False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self._snapshot), timeout_s)

    def start(self) -> None:
        """Poll from now on, in a thread of its own."""
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """Stop polling; wait up to `timeout_s` for a version that is being loaded."""
        self._stop.set()
        self._thread.join(timeout_s)

    def poll(self) -> None:
        """Look once, and return when what was found is acted upon. Never from two threads at a time."""
        try:
            folders = version_folders(self._base_path)
        except OSError as error:
            self._say_once(f"{self._base_path} can't be listed ({error.strerror}).")
            return
        self._listing_error = None
        self._broken = {v: seen for v, seen in self._broken.items() if v in folders}
        served = self._load_newest(folders)
        for version in self.snapshot.servables:
            if not folders or (served is not None and version != served):
                self._set(version, VersionState.UNLOADING)
                self._set(version, VersionState.END)

    def _load_newest(self, folders: Mapping[int, Path]) -> int | None:
        """Return the newest of `folders` that is AVAILABLE, loading it if need be, or None if all are broken."""
        for version in sorted(folders, reverse=True):
            if version in self.snapshot.servables:
                return version
            # Before loading: what changes while it loads is a reason to try again.
            seen = fingerprint(folders[version])
            if self._broken.get(version) == seen:
                continue
            self._set(version, VersionState.START)
            self._set(version, VersionState.LOADING)
            try:
                servable = self._load(folders[version])
            except Exception as error:  # whatever is wrong with it must not stop the version that serves
                log.exception("version %d in %s can't be loaded", version, folders[version])
                self._broken[version] = seen
                self._set(version, VersionState.END, error=f"{type(error).__name__}: {error}")
                continue
            self._broken.pop(version, None)
            self._set(version, VersionState.AVAILABLE, servable=servable)
            return version
        return None

    def _set(self, version: int, state: VersionState, *, servable: S | None = None, error: str | None = None) -> None:
        """Replace the snapshot by one where `version` is in `state`; `servable` belongs to AVAILABLE alone."""
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
            except Exception:  # a dead watcher would freeze the model for ever without a sign
                log.exception("a look at %s failed", self._base_path)
            self._stop.wait(self._poll_interval_s)


def version_folders(base_path: Path) -> dict[int, Path]:
    """Return the folders in `base_path` whose names are numbers, by number. Raises OSError if it can't be listed."""
    return {
        int(path.name): path
        for path in sorted(base_path.iterdir())  # of "01" and "1", always the same one
        if re.fullmatch("[0-9]{1,19}", path.name) and int(path.name) <= MAX_VERSION and path.is_dir()
    }


def fingerprint(folder: Path) -> Fingerprint:
    """Return what differs after `folder` or anything in it was renamed, written to, or replaced by its like."""
    found = []
    for path in (folder, *sorted(folder.rglob("*"))):
        try:
            stat = path.stat()
        except OSError:  # gone since it was listed: that is a change, too
            continue
        found.append((path.name, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)
