"""Large calls of the signatures in a session, as in TensorFlow Serving."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import LIMIT_S

# Arguments: version folder, signature, number of seeds. Prints the memory growth in MB, and whether rows are equal.
LARGE_CALL = """
import json, re, sys
from pathlib import Path
import numpy as np, tensorflow as tf

def memory_mb(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    signature = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1]).signature_def[sys.argv[2]]
feed, fetch = (next(iter(part.values())).name for part in (signature.inputs, signature.outputs))
seeds = np.arange(int(sys.argv[3])) * 2**40
rows = seeds if sys.argv[2] != "serving_default" else np.random.default_rng(0).normal(size=(len(seeds), 128))
run = lambda batch: session.run(fetch, {feed: batch})
run(rows[:64])
before_mb = memory_mb("VmRSS")
result = run(rows)
growth_mb = memory_mb("VmHWM") - before_mb
checked = [0, 1, 63, 64, 65, 127, 128, len(rows) // 2, len(rows) - 1]
are_equal = all(np.array_equal(run(rows[i : i + 1])[0], result[i]) for i in checked)
print(json.dumps({"shape": result.shape, "growth_mb": growth_mb, "are_equal": are_equal}))
"""


@pytest.mark.parametrize(
    ("signature", "row"), [("generate", (32, 32, 3)), ("serving_default", (32, 32, 3)), ("sample", (128,))]
)
def test_call_of_4001_rows_runs_in_chunks_with_equal_bytes(small_model, signature, row):
    arguments = [str(small_model / "1"), signature, "4001"]
    process = subprocess.run(
        [sys.executable, "-c", LARGE_CALL, *arguments], capture_output=True, text=True, timeout=4 * LIMIT_S
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["shape"] == [4001, *row]
    assert result["are_equal"]
    output_mb = np.prod(result["shape"]) * (4 if signature == "sample" else 1) / 1e6
    allowed_mb = 60 if signature == "sample" else 30  # latents took 39; unchunked images 600
    assert result["growth_mb"] < output_mb + allowed_mb
