import subprocess
import sys

from tests.conftest import LIMIT_S, ROOT

CODE = """
from serving.model_client.messages import predict_pb2
import tensorflow as tf
request = predict_pb2.PredictRequest()
request.inputs["x"].CopyFrom(tf.make_tensor_proto([42]))
print(tf.make_ndarray(request.inputs["x"]))
"""


def test_tensorflow_can_be_imported_after_the_messages_and_shares_them():
    command = [sys.executable, "-c", CODE]  # in a process of its own: what is imported stays imported
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT_S, cwd=ROOT)
    assert done.stdout == "[42]\n", done.stderr
