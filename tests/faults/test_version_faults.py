"""Versions are added, broken and removed under load."""

import shutil

import pytest

from tests.conftest import wait_until
from tests.fake_model_server import FakeModelServer
from tests.faults.load import Load, Outcome, put_load
from tests.faults.processes import model_server
from tests.gateway_process import gateway_for
from tests.hosted_model_server import publish, save_model, withdraw

CLIENTS = 16
SWAPS = 5


def newest(number: int) -> str:
    """Return one of 40 URLs without a version."""
    return f"/generate?seed={number % 40}"


def version_of(outcome: Outcome) -> int:
    return int(outcome.permanent_url.rpartition("version=")[2])


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Models whose pixels differ, by their shade."""
    folder = tmp_path_factory.mktemp("shades")
    for shade in range(SWAPS + 1):
        save_model(folder / str(shade), 20 * shade)
    return folder


def check_no_request_failed(load: Load, versions: set[int]) -> None:
    assert not load.failed, (len(load.failed), load.failed[0])
    assert {version_of(outcome) for outcome in load.answered} == versions
    assert max(map(len, load.digests().values())) == 1


def test_no_request_fails_or_mixes_versions_in_a_hot_swap(tmp_path):
    with (
        FakeModelServer(version=1) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, CLIENTS, newest) as load,
    ):
        for version in (2, 3, 4):
            wait_until(lambda: len(load.outcomes) > 100 * server.version, "images")
            server.version = version
        wait_until(lambda: version_of(load.answered[-1]) == 4, "the last version")
        count = len(load.outcomes)
        wait_until(lambda: len(load.outcomes) > count + 100, "images of the last version")
    check_no_request_failed(load, {1, 2, 3, 4})


@pytest.mark.chaos
def test_no_request_fails_in_five_hot_swaps_with_broken_versions(shades, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    publish(shades / "0", models, "1")
    with (
        model_server(models) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, CLIENTS, newest) as load,
    ):
        for swap in range(1, SWAPS + 1):
            count = len(load.outcomes)
            wait_until(lambda: len(load.outcomes) > count + 200, "images")  # noqa: B023 (is called here)
            broken = models / f"{10 * swap}"
            (models / ".aside").mkdir()
            (models / ".aside" / "saved_model.pb").write_bytes(b"no model")
            (models / ".aside").rename(broken)
            count = len(load.outcomes)
            wait_until(lambda: len(load.outcomes) > count + 200, "images of the old version")  # noqa: B023
            shutil.rmtree(broken)
            publish(shades / str(swap), models, str(swap + 1))
            wait_until(lambda: version_of(load.answered[-1]) == swap + 1, "the next version")  # noqa: B023
        count = len(load.outcomes)
        wait_until(lambda: len(load.outcomes) > count + 200, "images of the last version")
    check_no_request_failed(load, set(range(1, SWAPS + 2)))


@pytest.mark.chaos
def test_no_request_fails_when_the_newest_version_is_removed(shades, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for shade in (0, 1):
        publish(shades / str(shade), models, str(shade + 1))
    with (
        model_server(models) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, CLIENTS, newest) as load,
    ):
        wait_until(lambda: len(load.answered) > 200, "images")
        withdraw(models, "2")
        wait_until(lambda: version_of(load.answered[-1]) == 1, "the version before")
        count = len(load.outcomes)
        wait_until(lambda: len(load.outcomes) > count + 200, "images of it")
        assert gateway.ask("/generate?seed=7&version=2").status == 404
    check_no_request_failed(load, {1, 2})
