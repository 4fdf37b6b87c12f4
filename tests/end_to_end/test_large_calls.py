"""Calls of thousands of rows to the embedded model server, and what they cost its process."""

import re
from pathlib import Path

import grpc
import numpy as np

from serving.model_client.messages import prediction_service_pb2_grpc
from tests.conftest import LIMIT_S
from tests.faults.processes import embedded, model_server
from tests.hosted_model_server import generate, images

SEEDS = list(range(4_001))
ALONE = (0, 63, 64, 2_000, 4_000)


def memory_mb(process: Path, field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", (process / "status").read_text())[1]) / 1000


def test_a_call_of_4001_seeds_costs_little_memory_and_returns_the_right_images(small_model):
    unlimited = [("grpc.max_receive_message_length", -1)]
    words = (*embedded(small_model), "--model_name", "apple", "--enable_serialization_as_tensor_content")
    with model_server(*words) as server, grpc.insecure_channel(server.target, unlimited) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def ask(seeds: list[int]) -> np.ndarray:
            return images(stub.Predict(generate(seeds), timeout=2 * LIMIT_S))

        ask(SEEDS[:64])
        before_mb = memory_mb(server.folder(), "VmRSS")
        found = ask(SEEDS)
        growth_mb = memory_mb(server.folder(), "VmHWM") - before_mb
        assert found.shape == (4_001, 32, 32, 3)
        assert growth_mb < 100  # the images are 12 MB; all rows at once took 600 MB
        for seed in ALONE:
            assert np.array_equal(found[seed], ask([seed])[0])
