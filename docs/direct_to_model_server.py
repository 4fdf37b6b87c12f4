"""Get images directly from the model server, with the official package tensorflow-serving-api.

    pip install tensorflow-serving-api pillow
    python docs/direct_to_model_server.py localhost:8500 apples/ 7 42 100

It imports nothing of Ringo, and any language with gRPC can do the same. The pixels are those of the gateway's PNGs.
"""

import sys
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

TIMEOUT_S = 60.0


def generate(target: str, seeds: list[int], *, model_name: str = "apple") -> np.ndarray:
    """Return one image per seed, for at most 64 seeds: uint8[N, height, width, 3], sRGB."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = "generate"
    request.inputs["seeds"].CopyFrom(tf.make_tensor_proto(seeds, tf.int64))
    # gRPC's default limit is 4 MiB; 64 images of 256 x 256 are 12.6 MB.
    with grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", 64 * 2**20)]) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=TIMEOUT_S)
    return tf.make_ndarray(response.outputs["images"])


def main(target: str, folder: Path, seeds: list[int]) -> None:
    """Write one PNG per seed into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, pixels in zip(seeds, generate(target, seeds), strict=True):
        Image.fromarray(pixels).save(folder / f"{seed}.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]])
