"""BentoML with its adaptive batching: python -m bentoml serve benchmarks.peers.bentoml_service:Images.

One service, which responds in JSON, as batched ones do. Its documentation puts a second service in front for other
responses, and BentoML 1.4.39 then fails: after each 100 calls it closes the connections between the two, with requests
in flight. With 16 clients, 70 to 86 of 660 requests got 500.
"""

import base64
import os

import bentoml
import numpy as np

from serving.rendering.encoding import encode


@bentoml.service
class Images:
    """Runs the model on batches of seeds."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.loaded = tf.saved_model.load(os.environ["BENCH_VERSION"])

    @bentoml.api(batchable=True, max_batch_size=64)
    def generate(self, seeds: list[int]) -> list[str]:
        """Return one PNG per seed, in base64."""
        images = self.loaded.signatures["generate"](seeds=np.array(seeds))["images"].numpy()
        return [base64.b64encode(encode(pixels, "png", {})).decode() for pixels in images]
