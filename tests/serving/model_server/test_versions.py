"""The states of versions, step by step, with text files as models."""

from pathlib import Path

import pytest

from serving.model_server.versions import VersionWatcher
from tests.hosted_model_server import POLL_INTERVAL_S, withdraw


@pytest.fixture
def watcher(tmp_path) -> VersionWatcher:
    return VersionWatcher(tmp_path, lambda folder: (folder / "model").read_text(), poll_interval_s=POLL_INTERVAL_S)


def write_version(base_path: Path, name: str, model: str | None) -> None:
    (base_path / name).mkdir()
    if model is not None:
        (base_path / name / "model").write_text(model)


def test_older_version_is_served_when_the_newest_is_removed(watcher, tmp_path):
    write_version(tmp_path, "1", "old")
    write_version(tmp_path, "2", "new")
    watcher.poll()
    withdraw(tmp_path, "2")
    watcher.poll()
    assert watcher.servables == {1: "old"}
    assert watcher.statuses[2].state == "END"


def test_served_version_stays_when_only_broken_ones_are_left(watcher, tmp_path):
    write_version(tmp_path, "1", "old")
    watcher.poll()
    withdraw(tmp_path, "1")
    write_version(tmp_path, "2", None)
    watcher.poll()
    assert watcher.servables == {1: "old"}


def test_broken_version_is_loaded_once_when_it_does_not_change(tmp_path):
    tried = []
    watcher = VersionWatcher(tmp_path, lambda folder: tried.append(folder) or 1 / 0, poll_interval_s=POLL_INTERVAL_S)
    write_version(tmp_path, "1", None)
    watcher.poll()
    watcher.poll()
    assert tried == [tmp_path / "1"]


def test_broken_version_is_loaded_again_when_a_nested_file_changes(tmp_path):
    def load(folder):
        return (folder / "variables" / "data").read_text() or 1 / 0

    watcher = VersionWatcher(tmp_path, load, poll_interval_s=POLL_INTERVAL_S)
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "1" / "variables" / "data").touch()
    watcher.poll()
    assert watcher.servables == {}
    (tmp_path / "1" / "variables" / "data").write_text("repaired")
    watcher.poll()
    assert watcher.servables == {1: "repaired"}


@pytest.mark.parametrize("name", ["abc", "1a", "-1", "1.0", ".2", "²", "9" * 19, "1" * 20])
def test_folder_is_ignored_when_its_name_is_no_version(watcher, tmp_path, name):
    write_version(tmp_path, name, "model")
    watcher.poll()
    assert watcher.statuses == {}


def test_versions_stay_when_the_base_path_is_gone(watcher, tmp_path):
    write_version(tmp_path, "1", "model")
    watcher.poll()
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    watcher.poll()
    assert watcher.servables == {1: "model"}
