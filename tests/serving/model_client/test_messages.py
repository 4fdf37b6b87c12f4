"""Each fact in a process of its own: what is imported stays imported."""

import subprocess
import sys
from pathlib import Path

import grpc

from tests.conftest import ROOT

LIMIT_S = 120  # importing TensorFlow on a busy machine


def run_python(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_loading_the_messages_loads_no_tensorflow():
    code = """
import sys
import serving.model_client.messages
print("tensorflow" in sys.modules, any("libtensorflow" in line for line in open("/proc/self/maps")))
"""
    assert run_python(code) == "False False"


def test_tensorflow_can_still_be_imported_afterwards_and_shares_the_messages():
    code = """
from serving.model_client.messages import predict_pb2
import tensorflow as tf
request = predict_pb2.PredictRequest()
request.inputs["x"].CopyFrom(tf.make_tensor_proto([42]))
print(tf.make_ndarray(request.inputs["x"]))
"""
    assert run_python(code) == "[42]"


def test_a_loaded_tensorflow_is_left_where_it_is():
    code = """
import importlib.util, sys
loaded = importlib.util.module_from_spec(importlib.util.find_spec("tensorflow"))  # quicker than the real import
sys.modules["tensorflow"] = loaded
import serving.model_client.messages
print(sys.modules["tensorflow"] is loaded)
"""
    assert run_python(code) == "True"


def test_the_generated_modules_alone_suffice(tmp_path):
    """As in the image, which carries no wheel of TensorFlow: all other packages, and of these two their `*_pb2*.py`."""
    installed = Path(grpc.__file__).parents[1]
    for package in installed.iterdir():
        if not package.name.startswith("tensorflow"):
            (tmp_path / package.name).symlink_to(package)
    for source in installed.glob("tensorflow*/**/*_pb2*.py"):
        copy = tmp_path / source.relative_to(installed)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(source)
    code = f"""
import sys
sys.path.append({str(tmp_path)!r})
from serving.model_client.messages import predict_pb2, types_pb2
print(predict_pb2.__file__)
print(types_pb2.__file__)
"""
    assert run_python(code, "-S").splitlines() == [  # -S: without the folder that pip installs to
        str(tmp_path / "tensorflow_serving/apis/predict_pb2.py"),
        str(tmp_path / "tensorflow/core/framework/types_pb2.py"),
    ]
