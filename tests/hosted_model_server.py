"""A tiny SavedModel, and an embedded model server in this process."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from serving.model_client import messages
from serving.model_server.prediction_service import PredictionService
from serving.model_server.server import parse, start_server
from serving.model_server.versions import VersionWatcher
from tests.batch_process import refusal
from tests.conftest import LIMIT_S, command, started, wait_until
from tests.fake_model_server import tensor

POLL_INTERVAL_S = 0.05
LATENT_DIM = 8


def save_model(folder: Path, shade: int) -> None:
    """Write a SavedModel; latents of 0 give `shade` in every pixel."""
    import tensorflow as tf

    model = tf.Module()
    model.matrix = tf.Variable(np.arange(LATENT_DIM * 12, dtype=np.float32).reshape(LATENT_DIM, 12))

    def images_of(latents):
        pixels = tf.reshape(tf.matmul(latents, model.matrix), (-1, 2, 2, 3)) + float(shade)
        return tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)

    def latents_of(seeds):
        return tf.cast(seeds[:, None] % tf.range(1, LATENT_DIM + 1, dtype=tf.int64), tf.float32)

    latents = tf.TensorSpec((None, LATENT_DIM), tf.float32, name="latents")
    seeds = tf.TensorSpec((None,), tf.int64, name="seeds")
    signatures = {
        "serving_default": tf.function(lambda latents: {"images": images_of(latents)}, [latents]),
        "generate": tf.function(lambda seeds: {"images": images_of(latents_of(seeds))}, [seeds]),
    }
    tf.saved_model.save(model, str(folder), signatures=signatures)
    (folder / "assets.extra").mkdir()
    write_warm_up(folder, generate([1, 2]))


def write_warm_up(folder: Path, request: Any) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(prediction_log_pb2.PredictionLog(predict_log={"request": request}).SerializeToString())


def publish(source: Path, base_path: Path, name: str) -> None:
    """Copy a version folder and rename it, as the exporter does."""
    shutil.copytree(source, base_path / f".aside-{name}")
    (base_path / f".aside-{name}").rename(base_path / name)


def withdraw(base_path: Path, name: str) -> None:
    (base_path / name).rename(base_path / f".gone-{name}")


def inputs(*, output_filter: Sequence[str] = (), **protos: Any) -> Any:
    """Return a request for the default signature with these tensors."""
    return messages.predict_pb2.PredictRequest(model_spec={"name": "apple"}, output_filter=output_filter, inputs=protos)


def generate(seeds: list[int]) -> Any:
    request = inputs(seeds=tensor(messages.types_pb2.DT_INT64, [len(seeds)], int64_val=seeds))
    request.model_spec.signature_name = "generate"
    return request


def from_latents(**proto: Any) -> Any:
    """Return a request for images of latents: by default two zero rows."""
    return inputs(latents=tensor(**{"dtype": messages.types_pb2.DT_FLOAT, "shape": [2, LATENT_DIM]} | proto))


def images(response: Any) -> np.ndarray:
    import tensorflow as tf

    return tf.make_ndarray(response.outputs["images"])


@dataclass(frozen=True)
class Hosted:
    """A model server in this process, with stubs of one channel."""

    base_path: Path
    target: str
    predictions: Any
    models: Any

    def predict(self, request: Any) -> Any:
        return self.predictions.Predict(request, timeout=LIMIT_S)

    def statuses(self) -> list[Any]:
        request = messages.get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "apple"})
        return list(self.models.GetModelStatus(request, timeout=LIMIT_S).model_version_status)

    def states(self) -> dict[int, str]:
        """Return the state of each version, newest first."""
        state = messages.get_model_status_pb2.ModelVersionStatus.State
        return {status.version: state.Name(status.state) for status in self.statuses()}

    def wait_for(self, version: int, state: str) -> None:
        wait_until(lambda: self.states().get(version) == state, f"version {version}: {state}")

    def refusal_of(self, request: Any) -> tuple[grpc.StatusCode, str]:
        methods = {
            "PredictRequest": self.predictions.Predict,
            "GetModelMetadataRequest": self.predictions.GetModelMetadata,
            "GetModelStatusRequest": self.models.GetModelStatus,
            "ClassificationRequest": self.predictions.Classify,
            "RegressionRequest": self.predictions.Regress,
            "MultiInferenceRequest": self.predictions.MultiInference,
            "ReloadConfigRequest": self.models.HandleReloadConfigRequest,
        }
        return refusal(lambda: methods[request.DESCRIPTOR.name](request, timeout=LIMIT_S))[:2]


@contextmanager
def hosting(base_path: Path, *, typed_fields: bool = False) -> Iterator[Hosted]:
    from serving.model_server.servable import load

    watcher = VersionWatcher(base_path, load, poll_interval_s=POLL_INTERVAL_S)
    watcher.start()
    server, port = start_server(PredictionService(watcher, "apple", typed_fields=typed_fields), parse(["--port=0"]))
    target = f"127.0.0.1:{port}"
    try:
        with grpc.insecure_channel(target) as channel:
            predictions = messages.prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield Hosted(base_path, target, predictions, messages.model_service_pb2_grpc.ModelServiceStub(channel))
    finally:
        server.stop(None).wait(LIMIT_S)
        watcher.close(timeout_s=LIMIT_S)


def model_server_process(log: Path, line: str, *flags: object) -> AbstractContextManager[subprocess.Popen]:
    """Run the embedded model server as a process in a `with` block, once `log` has `line`."""
    return started(command("serving", "model-server", *flags), log, lambda: line in log.read_text())
