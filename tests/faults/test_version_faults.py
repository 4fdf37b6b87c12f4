"""Versions come, break and go while clients ask: each request is answered by one version, whole and right."""

import shutil

import pytest

from tests.conftest import wait_until
from tests.faults.load import Load, clients_asking
from tests.faults.processes import embedded, model_server
from tests.gateway_process import gateway_for
from tests.hosted_model_server import publish, save_model, withdraw

CLIENTS = 16
SWAPS = 5


def newest(number: int) -> str:
    """Return one of 40 addresses that leave the version open."""
    return f"/generate?seed={number % 40}"


def version_of(address: str) -> int:
    return int(address.rpartition("version=")[2])


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Models of other pixels each, by their shade."""
    folder = tmp_path_factory.mktemp("shades")
    for shade in range(SWAPS + 1):
        save_model(folder / str(shade), 20 * shade)
    return folder


def check_nobody_noticed(load: Load, versions: set[int]) -> None:
    assert not load.failed, (len(load.failed), load.failed[0])
    assert {version_of(outcome.address) for outcome in load.answered} == versions
    assert max(len(digests) for digests in load.digests().values()) == 1
    # Versions paint otherwise: of one seed there are as many pictures as versions.
    assert len(
        {digest for address, found in load.digests().items() if "seed=7&" in address for digest in found}
    ) == len(versions)


@pytest.mark.chaos
def test_five_hot_swaps_with_a_broken_version_before_each_fail_nobody(shades, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    publish(shades / "0", models, "1")
    with (
        model_server(*embedded(models)) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        clients_asking(gateway.port, CLIENTS, newest) as load,
    ):
        for swap in range(1, SWAPS + 1):
            seen = len(load.outcomes)
            wait_until(lambda: len(load.outcomes) > seen + 200, "pictures")  # noqa: B023 (is called here)
            broken = models / f"{10 * swap}"
            (models / ".aside").mkdir()
            (models / ".aside" / "saved_model.pb").write_bytes(b"no model")
            (models / ".aside").rename(broken)
            seen = len(load.outcomes)
            wait_until(lambda: len(load.outcomes) > seen + 200, "pictures despite of it")  # noqa: B023
            shutil.rmtree(broken)
            publish(shades / str(swap), models, str(swap + 1))
            wait_until(lambda: version_of(load.answered[-1].address) == swap + 1, "the next version")  # noqa: B023
        seen = len(load.outcomes)
        wait_until(lambda: len(load.outcomes) > seen + 200, "pictures of the last")
    print(f"\n{len(load.outcomes)} requests over {SWAPS} swaps, {len(load.failed)} failed")
    check_nobody_noticed(load, set(range(1, SWAPS + 2)))


@pytest.mark.chaos
def test_a_version_withdrawn_while_in_use_hands_over_to_the_one_before_and_fails_nobody(shades, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for shade in (0, 1):
        publish(shades / str(shade), models, str(shade + 1))
    with (
        model_server(*embedded(models)) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        clients_asking(gateway.port, CLIENTS, newest) as load,
    ):
        wait_until(lambda: len(load.answered) > 200, "pictures")
        withdraw(models, "2")
        wait_until(lambda: version_of(load.answered[-1].address) == 1, "the version before")
        seen = len(load.outcomes)
        wait_until(lambda: len(load.outcomes) > seen + 200, "pictures of it")
        assert gateway.ask("/generate?seed=7&version=2").status == 404
    check_nobody_noticed(load, {1, 2})
