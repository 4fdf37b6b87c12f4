import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.errors import ModelTimeout
from serving.model_client.batcher import PredictBatcher
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, StatusError, answer, latents, pictures_of
from tests.gateway_process import Gateway, Reply, gateway_for

BUSY, WAITING = 1000, range(2000, 2008)
CALL_S = 3600.0
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


class Generator:
    """Notes the calls it gets as (version, seeds), and is busy with BUSY until `go_on`."""

    def __init__(self, clock: "Clock | None" = None) -> None:
        self.calls: list[tuple[int, list[int]]] = []
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._clock = clock

    def __call__(self, version: int, seeds: Sequence[int], deadline_s: float) -> list[np.ndarray]:
        self.calls.append((version, sorted(seeds)))
        if self._clock and len(seeds) > 1:
            self._clock.ahead_s += CALL_S
        if list(seeds) == [BUSY]:
            self.reached.set()
            assert self.go_on.wait(LIMIT_S)
        return list(pictures_of(latents(seeds), version))


class Clock:
    """Stands in for the module `time`: CALL_S passes with each call for several, and none else unless it `runs`."""

    def __init__(self, *, runs: bool = False) -> None:
        self.ahead_s = 1000.0
        self._runs = runs

    def monotonic(self) -> float:
        return self.ahead_s + (time.monotonic() if self._runs else 0.0)


@contextmanager
def while_busy(batcher: PredictBatcher, generate: Generator) -> Iterator[ThreadPoolExecutor]:
    """Keep the one call at a time busy for the `with` block; what its pool was asked for is done afterwards."""
    with ThreadPoolExecutor() as pool:
        busy = pool.submit(batcher.predict, 1, BUSY, np.copy)
        assert generate.reached.wait(LIMIT_S)
        try:
            yield pool
        finally:
            generate.go_on.set()
        busy.result(LIMIT_S)


def wait_for(batcher: PredictBatcher, callers: int) -> None:
    wait_until(lambda: len(batcher._waiting) == callers, f"{callers} callers to wait")


def test_who_waited_too_long_costs_no_inference():
    generate = Generator()
    batcher = PredictBatcher(generate, max_calls=1)
    with while_busy(batcher, generate), pytest.raises(ModelTimeout):
        batcher.predict(1, 2000, np.copy, deadline_s=time.monotonic())
    batcher.predict(1, 3000, np.copy)
    assert generate.calls == [(1, [BUSY]), (1, [3000])]


def test_the_third_of_three_is_not_in_their_call_which_would_take_as_long_as_one_for_four():
    generate = Generator()
    batcher = PredictBatcher(generate, max_calls=1)
    with while_busy(batcher, generate) as pool:
        for waiting, seed in enumerate((2000, 2001, 2002), start=1):
            pool.submit(batcher.predict, 1, seed, np.copy)
            wait_for(batcher, waiting)
    assert generate.calls == [(1, [BUSY]), (1, [2000, 2001]), (1, [2002])]


def shared_once(batcher: PredictBatcher, generate: Generator) -> None:
    """Have two callers share a call."""
    with while_busy(batcher, generate) as pool:
        both = [pool.submit(batcher.predict, 1, seed, np.copy) for seed in (2000, 2001)]
        wait_for(batcher, 2)
    for one in both:
        one.result(LIMIT_S)


def test_those_who_shared_a_call_and_ask_again_share_the_next(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("serving.model_client.batcher.time", clock)
    generate = Generator(clock)
    batcher = PredictBatcher(generate, max_calls=1)
    shared_once(batcher, generate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(batcher.predict, 1, 3000, np.copy)
        wait_for(batcher, 1)
        batcher.predict(1, 3001, np.copy)
        first.result(LIMIT_S)
    assert generate.calls == [(1, [BUSY]), (1, [2000, 2001]), (1, [3000, 3001])]


def test_who_asks_again_alone_is_hardly_held_back_however_long_the_last_call_took(monkeypatch):
    clock = Clock(runs=True)
    monkeypatch.setattr("serving.model_client.batcher.time", clock)
    generate = Generator(clock)
    batcher = PredictBatcher(generate, max_calls=1)
    shared_once(batcher, generate)
    with ThreadPoolExecutor() as pool:
        pool.submit(batcher.predict, 1, 3000, np.copy).result(LIMIT_S)
    assert generate.calls[-1] == (1, [3000])


def test_nobody_waits_for_company_where_several_calls_may_be_made_and_none_is(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("serving.model_client.batcher.time", clock)
    generate = Generator(clock)
    batcher = PredictBatcher(generate, max_calls=2)
    batcher._expected, batcher._wait_until_s = 2, clock.monotonic() + 1.0  # as after a call that two have shared
    with ThreadPoolExecutor() as pool:
        pool.submit(batcher.predict, 1, 3000, np.copy).result(LIMIT_S)
    assert generate.calls == [(1, [3000])]


def test_callers_of_several_versions_get_each_their_own():
    generate = Generator()
    batcher = PredictBatcher(generate, max_calls=1)
    with while_busy(batcher, generate) as pool:
        asked = [(version, 2000 + version) for version in (2, 3, 2, 3, 4)]
        pictures = [pool.submit(batcher.predict, version, seed, np.copy) for version, seed in asked]
        wait_for(batcher, len(asked))
    for (version, seed), picture in zip(asked, pictures, strict=True):
        np.testing.assert_array_equal(picture.result(LIMIT_S), pictures_of(latents([seed]), version)[0])
    assert sorted(version for version, _ in generate.calls) == [1, 2, 3, 4]


def test_many_callers_all_get_what_they_asked_for_or_hear_that_it_is_too_late():
    generate = Generator()
    batcher = PredictBatcher(generate, max_calls=2)

    def ask(number: int) -> bool:
        version, seed = 1 + number % 2, 2000 + number
        late = number % 5 == 0
        try:
            picture = batcher.predict(version, seed, np.copy, deadline_s=time.monotonic() + (0.0 if late else LIMIT_S))
        except ModelTimeout:
            return late
        return np.array_equal(picture, pictures_of(latents([seed]), version)[0])

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(2000)))
    assert not batcher._waiting
