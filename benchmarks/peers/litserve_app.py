"""LitServe with its batching: python -m benchmarks.peers.litserve_app PORT."""

import os
import sys

import litserve
import numpy as np
import tensorflow as tf
from fastapi import Response

from serving.rendering.encoding import encode


class Generator(litserve.LitAPI):
    """One worker; a batch waits for up to `batch_timeout`."""

    def setup(self, device):
        """Load the model, in the worker."""
        self.loaded = tf.saved_model.load(os.environ["BENCH_VERSION"])

    def decode_request(self, request):
        """Return the seed of one request."""
        return np.int64(request["seed"])

    def predict(self, seeds):
        """Return images uint8[N, H, W, 3] for int64[N]."""
        return self.loaded.signatures["generate"](seeds=tf.constant(seeds, tf.int64))["images"].numpy()

    def encode_response(self, pixels):
        """Return one response."""
        return Response(encode(pixels, "png", {}), media_type="image/png")


if __name__ == "__main__":
    api = Generator(max_batch_size=64, batch_timeout=0.002)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False
    )
