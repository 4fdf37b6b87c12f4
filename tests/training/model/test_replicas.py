"""Two worker processes that train together."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import wait_until
from tests.gateway_process import free_port
from tests.training.fit.test_run import fit, interrupt_at, output_of, read_losses, start_fit, steps_in
from training.errors import TrainingError
from training.model.replicas import strategy_scope


@pytest.fixture(scope="module")
def chief(photos, small_run, tmp_path_factory):
    """Return run folder, status and output of the chief of two workers.

    They resumed the small run until the other one was killed.
    """
    run = shutil.copytree(small_run, tmp_path_factory.mktemp("workers") / "run")
    cluster = {"worker": [f"localhost:{free_port()}", f"localhost:{free_port()}"]}
    tasks = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2)]
    flags = ("--steps", 500, "--strategy", "multi-worker")
    process, other = (start_fit(photos, run, *flags, TF_CONFIG=task) for task in tasks)
    wait_until(lambda: len(steps_in(run)) > 6, "three batches", limit_s=240)
    other.kill()
    output = output_of(process)
    output_of(other)
    return run, process.returncode, output


def test_losses_are_equal_when_two_workers_resume_a_run(photos, run, chief, monkeypatch):
    interrupt_at(monkeypatch, 7)
    fit(photos, run, "--steps", 500)
    np.testing.assert_allclose(read_losses(chief[0])[:7], read_losses(run), rtol=1e-4)


def test_chief_names_the_cause_when_another_worker_is_killed(chief):
    run, status, output = chief
    assert (status, steps_in(run)) == (2, list(range(1, len(steps_in(run)) + 1)))  # the other one wrote nothing
    assert "Another worker stopped or cannot be reached; start all workers again" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("configuration", [None, "{", '{"cluster": {}}'])
def test_multi_worker_is_refused_when_tf_config_is_wrong(monkeypatch, tmp_path, configuration):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if configuration is not None:
        monkeypatch.setenv("TF_CONFIG", configuration)
    with pytest.raises(TrainingError, match="set it to something like"), strategy_scope("multi-worker", tmp_path):
        pass
