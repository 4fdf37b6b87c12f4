import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.errors import ModelTimeout
from serving.joined_calls import JoinedCalls
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, StatusError, answer, latents, pictures_of
from tests.gateway_process import Gateway, Reply, gateway_for

BUSY, WAITING = 1000, range(2000, 2008)
ASKED = 'ringo_pictures_total{source="model"}'


class BusyModel:
    """Notes the seeds of each call for pictures, and is busy with BUSY until `go_on`."""

    def __init__(self, *, proved: bool = True, fails: bool = False) -> None:
        self.calls: list[list[int]] = []
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._proved = proved
        self._fails = fails

    def reply(self, request):
        if request.model_spec.signature_name == "golden" and not self._proved:
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION)
        if request.model_spec.signature_name == "generate":
            seeds = memoryview(request.inputs["seeds"].tensor_content).cast("q").tolist()
            if min(seeds) >= BUSY:  # no golden one
                self.calls.append(seeds)
            if seeds == [BUSY]:
                self.reached.set()
                self.go_on.wait(LIMIT_S)
            elif self._fails and min(seeds) >= BUSY:
                raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED)
        return answer(request, version=1)


@contextmanager
def asked_while_busy(model: BusyModel, folder: Path, **settings: object) -> Iterator[tuple[Gateway, list[Reply]]]:
    """Give the answers to all of WAITING, who came while the model's one call was busy."""
    with (
        FakeModelServer(reply=model.reply) as server,
        gateway_for(server.target, folder, model_calls=1, **settings) as gateway,
        ThreadPoolExecutor(1 + len(WAITING)) as pool,
    ):
        wait_until(lambda: gateway.ask("/readyz").status == 200, "gateway ready")
        first = pool.submit(gateway.ask, f"/generate?seed={BUSY}")
        assert model.reached.wait(LIMIT_S)
        others = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in WAITING]
        wait_until(lambda: gateway.metric(ASKED) == 1 + len(WAITING), "all callers to wait")
        model.go_on.set()
        replies = [other.result(LIMIT_S) for other in others]
        first.result(LIMIT_S)
        yield gateway, replies


def test_who_asks_while_the_model_is_busy_goes_along_with_the_next_call(tmp_path):
    model = BusyModel()
    with asked_while_busy(model, tmp_path) as (_, replies):
        assert [reply.status for reply in replies] == [200] * len(WAITING)
    assert [sorted(call) for call in model.calls] == [[BUSY], list(WAITING)]


def test_joined_pictures_are_the_bytes_of_lone_ones(tmp_path):
    with asked_while_busy(BusyModel(), tmp_path, cache_mb=0) as (gateway, replies):
        alone = [gateway.ask(f"/generate?seed={seed}").body for seed in WAITING]
    assert [reply.body for reply in replies] == alone


def test_a_replica_that_is_not_proved_paints_each_picture_alone(tmp_path):
    model = BusyModel(proved=False)
    with asked_while_busy(model, tmp_path):
        pass
    assert sorted(model.calls) == [[BUSY], *([seed] for seed in WAITING)]


def test_the_failure_of_a_joined_call_is_the_answer_to_all_in_it(tmp_path):
    model = BusyModel(fails=True)
    with asked_while_busy(model, tmp_path) as (_, replies):
        assert [reply.status for reply in replies] == [503] * len(WAITING)
    assert len(model.calls) == 2


def test_who_waited_too_long_costs_no_inference():
    calls: list[list[int]] = []
    reached, go_on = threading.Event(), threading.Event()

    def generate(version: int, seeds: list[int], deadline_s: float) -> list[np.ndarray]:
        calls.append(list(seeds))
        if seeds == [BUSY]:
            reached.set()
            go_on.wait(LIMIT_S)
        return list(pictures_of(latents(seeds), version))

    joined = JoinedCalls(generate, at_a_time=1)
    busy = threading.Thread(target=joined.picture, args=(1, BUSY, np.copy))
    busy.start()
    assert reached.wait(LIMIT_S)
    with pytest.raises(ModelTimeout):
        joined.picture(1, 2000, np.copy, deadline_s=time.monotonic())
    go_on.set()
    busy.join(LIMIT_S)
    joined.picture(1, 3000, np.copy)
    assert calls == [[BUSY], [3000]]
