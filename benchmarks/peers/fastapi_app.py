"""FastAPI around a loaded SavedModel: python -m uvicorn benchmarks.peers.fastapi_app:app."""

import os

import tensorflow as tf
from fastapi import FastAPI, Response

from serving.rendering.encoding import encode

app = FastAPI()
loaded = tf.saved_model.load(os.environ["BENCH_VERSION"])
signature = loaded.signatures["generate"]


@app.get("/generate")
def generate(seed: int) -> Response:
    """Return the image of a seed, in one of FastAPI's 40 threads."""
    (pixels,) = signature(seeds=tf.constant([seed], tf.int64))["images"].numpy()
    return Response(encode(pixels, "png", {}), media_type="image/png")
