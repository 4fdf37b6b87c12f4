"""Large calls in a session, as in TensorFlow Serving, and the fused generator."""

import subprocess
import sys

import numpy as np

from tests.conftest import LIMIT_S
from training.export.fusion import build_function, fuse
from training.model.latents import sample_latents
from training.model.networks import build_generator

# Argument: version folder. Checks shape, memory growth in MB and equality of rows, for each signature.
LARGE_CALLS = """
import re, sys
from pathlib import Path
import numpy as np, tensorflow as tf

def memory_mb(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

def check(signature, row_shape):
    feed, fetch = (next(iter(part.values())).name for part in (signature.inputs, signature.outputs))
    run = lambda batch: session.run(fetch, {feed: batch})
    rows = latents if feed.startswith("serving_default") else seeds
    run(rows[:64])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM restarts
    before_mb = memory_mb("VmRSS")
    result = run(rows)
    # The output of `sample` has 2 MB, of the others 12. Latents took 39 more; unchunked images take 600.
    assert memory_mb("VmHWM") - before_mb < 70
    assert result.shape == (len(rows), *row_shape)
    for i in (0, 1, 63, 64, 65, 127, 128, len(rows) // 2, len(rows) - 1):
        assert np.array_equal(run(rows[i : i + 1])[0], result[i])

seeds, latents = np.arange(4001) * 2**40, np.random.default_rng(0).normal(size=(4001, 128))
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    signatures = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1]).signature_def
for name, row_shape in (("generate", (32, 32, 3)), ("serving_default", (32, 32, 3)), ("sample", (128,))):
    check(signatures[name], row_shape)
"""


def test_calls_of_4001_rows_run_in_chunks_with_equal_bytes(small_model):
    subprocess.run([sys.executable, "-c", LARGE_CALLS, small_model / "1"], check=True, timeout=4 * LIMIT_S)


def test_fused_generator_equals_the_generator():
    rng, generator = np.random.default_rng(0), build_generator(16, (24, 16, 8))
    for variable in generator.weights:  # initial values are neutral
        positive = "variance" in variable.path
        variable.assign(rng.uniform(0.5, 2.0, variable.shape) if positive else rng.normal(0.0, 0.2, variable.shape))
    latents, fused = sample_latents(np.arange(32), 16), build_function(fuse(generator), 16)
    expected = np.asarray(generator(latents, training=False))
    assert expected.std() > 0.1  # a uniform grey would prove nothing
    np.testing.assert_allclose(fused(latents), expected, atol=2e-5)
