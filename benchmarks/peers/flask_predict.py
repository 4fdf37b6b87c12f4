"""A Flask application around `model.predict`: gunicorn -w 4 benchmarks.peers.flask_predict:app."""

import io
import os
from pathlib import Path

import numpy as np
from flask import Flask, request, send_file

from benchmarks.weights import keras_generator
from serving.rendering.encoding import encode
from training.model.latents import sample_latents

app = Flask(__name__)
model = keras_generator(Path(os.environ["BENCH_VERSION"]))


@app.get("/generate")
def generate():
    """Return an image of a seed, without the selector, which takes 1 % of the time."""
    latents = sample_latents(np.array([int(request.args["seed"])]), model.input_shape[1])
    (image,) = model.predict(latents, verbose=0)
    pixels = np.clip(np.round((image + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return send_file(io.BytesIO(encode(pixels, "png", {})), mimetype="image/png")
