import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from serving.errors import ModelTimeout
from serving.model_client.batcher import PredictBatcher
from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, StatusError, answer, latents, pictures_of, refusing
from tests.gateway_process import Gateway, Reply

BUSY, WAITING = 1000, range(2000, 2009)


def calls_of(server: FakeModelServer) -> list[list[int]]:
    """Return the seeds of each call for images, without the golden ones."""
    generate = [request for request in server.requests if request.model_spec.signature_name == "generate"]
    seeds = [sorted(memoryview(request.inputs["seeds"].tensor_content).cast("q").tolist()) for request in generate]
    return [found for found in seeds if found[0] >= BUSY]


def ask_while_busy(server: FakeModelServer, gateway: Gateway) -> list[Reply]:
    """Return the responses to requests that waited for a busy model."""
    with ThreadPoolExecutor(1 + len(WAITING)) as pool, server.holding():
        pool.submit(gateway.ask, f"/generate?seed={BUSY}")
        wait_until(lambda: calls_of(server), "the first call")
        others = [pool.submit(gateway.ask, f"/generate?seed={seed}") for seed in WAITING]
        wait_until(lambda: gateway.rendered() == 1 + len(WAITING), "all requests to wait")
    return [other.result() for other in others]


def test_requests_share_an_even_batch_when_the_model_is_busy(server, start_gateway):
    gateway = start_gateway(server.target, model_calls=1, cache_mb=0)
    replies = ask_while_busy(server, gateway)
    assert [len(call) for call in calls_of(server)] == [1, 8, 1]
    assert [reply.body for reply in replies] == [gateway.ask(f"/generate?seed={seed}").body for seed in WAITING]


def test_requests_do_not_share_calls_when_the_replica_is_not_verified(server, start_gateway):
    server.reply = refusing(grpc.StatusCode.FAILED_PRECONDITION, "golden")
    ask_while_busy(server, start_gateway(server.target, model_calls=1))
    assert sorted(calls_of(server)) == [[BUSY], *([seed] for seed in WAITING)]


def test_every_request_of_a_batch_gets_503_when_its_call_fails(server, start_gateway):
    def reply(request):
        if calls_of(server):  # not for the golden images
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED)
        return answer(request)

    server.reply = reply
    replies = ask_while_busy(server, start_gateway(server.target, model_calls=1))
    assert [reply.status for reply in replies] == [503] * len(WAITING)
    assert len(calls_of(server)) == 3


def test_each_request_gets_its_own_image_or_a_timeout_under_load():
    batcher = PredictBatcher(lambda version, seeds, _: list(pictures_of(latents(seeds), version)), max_calls=2)

    def ask(number: int) -> bool:
        version, seed, is_late = 1 + number % 2, 2000 + number, number % 5 == 0
        deadline_s = time.monotonic() + (0.0 if is_late else LIMIT_S)
        try:
            image = batcher.predict(version, seed, np.copy, deadline_s=deadline_s)
        except ModelTimeout:
            return is_late
        return np.array_equal(image, pictures_of(latents([seed]), version)[0])

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(2000)))
