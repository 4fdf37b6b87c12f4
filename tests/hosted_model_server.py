"""A tiny SavedModel, and an embedded model server in this process."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.model_client.messages import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    types_pb2,
)
from serving.model_server.prediction_service import PredictionService
from serving.model_server.server import Listener, start_server
from serving.model_server.versions import VersionState, VersionWatcher
from tests.conftest import LIMIT_S

POLL_INTERVAL_S = 0.05
LATENT_DIM = 8

TensorProto = type(predict_pb2.PredictRequest().inputs["any"])  # importing its module would import TensorFlow

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def save_model(folder: Path, shade: int) -> None:
    """Write a SavedModel; latents of 0 give `shade` in every pixel."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    class Model(tf.Module):
        def __init__(self):
            self.matrix = tf.Variable(np.arange(LATENT_DIM * 12, dtype=np.float32).reshape(LATENT_DIM, 12))

        def images_of(self, latents):
            pixels = tf.reshape(tf.matmul(latents, self.matrix), (-1, 2, 2, 3)) + float(shade)
            return tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)

        def latents_of(self, seeds):
            return tf.cast(seeds[:, None] % tf.range(1, LATENT_DIM + 1, dtype=tf.int64), tf.float32)

    model = Model()
    latents = tf.TensorSpec((None, LATENT_DIM), tf.float32, name="latents")
    seeds = tf.TensorSpec((None,), tf.int64, name="seeds")
    signatures = {
        "serving_default": tf.function(lambda latents: {"images": model.images_of(latents)}, [latents]),
        "generate": tf.function(lambda seeds: {"images": model.images_of(model.latents_of(seeds))}, [seeds]),
        "sample": tf.function(lambda seeds: {"latents": model.latents_of(seeds)}, [seeds]),
    }
    tf.saved_model.save(model, str(folder), signatures=signatures)
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        entry = prediction_log_pb2.PredictionLog()
        entry.predict_log.request.CopyFrom(generate([1, 2]))
        writer.write(entry.SerializeToString())


def publish(source: Path, base_path: Path, name: str) -> None:
    """Copy a version folder and rename it, as the exporter does."""
    shutil.copytree(source, base_path / f".aside-{name}")
    (base_path / f".aside-{name}").rename(base_path / name)


def withdraw(base_path: Path, name: str) -> None:
    (base_path / name).rename(base_path / f".gone-{name}")


def generate(seeds: list[int], *, version: int | None = None) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "apple"
    request.model_spec.signature_name = "generate"
    if version is not None:
        request.model_spec.version.value = version
    request.inputs["seeds"].CopyFrom(tensor(types_pb2.DT_INT64, [len(seeds)], int64_val=seeds))
    return request


def from_latents(**proto: Any) -> Any:
    """Return a request for images of latents: by default two zero rows."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "apple"
    request.inputs["latents"].CopyFrom(tensor(**{"dtype": types_pb2.DT_FLOAT, "shape": [2, LATENT_DIM]} | proto))
    return request


def tensor(dtype: int, shape: list[int], **values: Any) -> Any:
    proto = TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def images(response: Any) -> np.ndarray:
    proto = response.outputs["images"]
    assert proto.dtype == types_pb2.DT_UINT8
    flat = np.frombuffer(proto.tensor_content, np.uint8) if proto.tensor_content else np.array(proto.int_val, np.uint8)
    return flat.reshape([dim.size for dim in proto.tensor_shape.dim])


@dataclass(frozen=True)
class Hosted:
    """A model server in this process, with stubs of one channel."""

    base_path: Path
    target: str
    watcher: VersionWatcher
    predictions: Any
    models: Any

    def predict(self, request: Any) -> Any:
        return self.predictions.Predict(request, timeout=LIMIT_S)

    def wait_for(self, version: int, state: VersionState) -> None:
        def holds(snapshot):
            return version in snapshot.statuses and snapshot.statuses[version].state is state

        assert self.watcher.wait_for(holds, timeout_s=LIMIT_S), (version, state, self.watcher.snapshot.statuses)


@contextmanager
def hosting(base_path: Path, *, typed_fields: bool = False) -> Iterator[Hosted]:
    from serving.model_server.servable import load

    watcher = VersionWatcher(base_path, load, poll_interval_s=POLL_INTERVAL_S)
    watcher.poll()
    watcher.start()
    service = PredictionService(watcher, "apple", typed_fields=typed_fields)
    server, port = start_server(service, Listener())
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield Hosted(
                base_path, f"127.0.0.1:{port}", watcher, predictions, model_service_pb2_grpc.ModelServiceStub(channel)
            )
    finally:
        server.stop(None).wait(LIMIT_S)
        watcher.close(timeout_s=LIMIT_S)


def statuses(hosted: Hosted) -> list[Any]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "apple"
    return list(hosted.models.GetModelStatus(request, timeout=LIMIT_S).model_version_status)


def refusal_of(hosted: Hosted, request: Any) -> tuple[grpc.StatusCode, str]:
    methods = {
        "PredictRequest": hosted.predictions.Predict,
        "GetModelMetadataRequest": hosted.predictions.GetModelMetadata,
        "GetModelStatusRequest": hosted.models.GetModelStatus,
        "ClassificationRequest": hosted.predictions.Classify,
        "RegressionRequest": hosted.predictions.Regress,
        "MultiInferenceRequest": hosted.predictions.MultiInference,
        "ReloadConfigRequest": hosted.models.HandleReloadConfigRequest,
    }
    with pytest.raises(grpc.RpcError) as refused:
        methods[request.DESCRIPTOR.name](request, timeout=LIMIT_S)
    return refused.value.code(), refused.value.details()
