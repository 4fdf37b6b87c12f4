"""Versions are added, broken and removed under load."""

import shutil

import pytest

from tests.conftest import wait_until
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
    return int(outcome.headers["Content-Location"].rpartition("version=")[2])


def check_no_request_failed(load: Load, versions: set[int]) -> None:
    assert not load.failed, (len(load.failed), load.failed[0])
    assert {version_of(outcome) for outcome in load.answered} == versions
    assert max(map(len, load.digests().values())) == 1


def test_no_request_fails_or_mixes_versions_in_a_hot_swap(server, start_gateway):
    with put_load(start_gateway(server.target, cache_mb=0).port, CLIENTS, newest) as load:
        for version in (4, 5, 6):
            load.wait_for_images(100)
            server.version = version
        wait_until(lambda: version_of(load.answered[-1]) == 6, "the last version")
        load.wait_for_images(100)
    check_no_request_failed(load, {3, 4, 5, 6})


@pytest.mark.chaos
def test_no_request_fails_when_versions_are_added_broken_and_removed(tmp_path):
    models, shades = tmp_path / "models", tmp_path / "shades"
    for shade in range(SWAPS + 1):
        save_model(shades / str(shade), 20 * shade)  # so that pixels of versions differ
    models.mkdir()
    publish(shades / "0", models, "1")
    with (
        model_server(models) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, CLIENTS, newest) as load,
    ):
        for swap in range(1, SWAPS + 1):
            load.wait_for_images(200)
            broken = models / f"{10 * swap}"
            (models / ".aside").mkdir()
            (models / ".aside" / "saved_model.pb").write_bytes(b"no model")
            (models / ".aside").rename(broken)
            load.wait_for_images(200)
            shutil.rmtree(broken)
            publish(shades / str(swap), models, str(swap + 1))
            wait_until(lambda: version_of(load.answered[-1]) == swap + 1, "the next version")  # noqa: B023 (is called here)
        load.wait_for_images(200)
        withdraw(models, str(SWAPS + 1))
        wait_until(lambda: version_of(load.answered[-1]) == SWAPS, "the version before")
        load.wait_for_images(200)
        assert gateway.ask(f"/generate?seed=7&version={SWAPS + 1}").status == 404
    check_no_request_failed(load, set(range(1, SWAPS + 2)))
