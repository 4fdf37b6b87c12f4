"""The generator by runtime and by size: python -m benchmarks.generator.

All runtimes have the bundled weights. Plain is the network in Keras's own layers; fused is the exported form. The floor
is the time of its multiply-adds at the speed of a product of large matrices on this machine.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from benchmarks import rounds
from benchmarks.stock_layers import in_stock_layers
from benchmarks.weights import keras_generator, newest_version, version_name
from serving.rendering.encoding import encode, resize
from training.config import GENERATOR_CHANNELS, IMAGE_SIZES
from training.export.fusion import Stage, build_function, fuse
from training.model.networks import BLUR, build_generator

THREADS = len(os.sched_getaffinity(0))  # for each runtime; TensorFlow's own default, too
BATCHES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS = 10
MATRIX = 2048  # 16 MB each: beyond a core's own cache
OURS = "ours, fused SavedModel"
NETWORKS = {f"{size} px": GENERATOR_CHANNELS["cpu", size] for size in IMAGE_SIZES} | {
    "64 px, version 2": (128, 128, 64, 48, 32)
}

Run = Callable[[Any], Any]  # latents float32[N, latent_dim] -> images [N, S, S, 3]


def matrix_rate() -> float:
    """Return float32 operations a second of a large matrix product."""
    a, b = tf.random.normal((MATRIX, MATRIX)), tf.random.normal((MATRIX, MATRIX))
    product = tf.function(tf.matmul)
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        product(a, b).numpy()
        times.append(time.perf_counter() - begin)
    return 2.0 * MATRIX**3 / min(times)


def multiply_adds(stages: Sequence[Stage]) -> int:
    """Return the multiply-adds of one image, those with padding included."""
    total, side = 0, 4
    for stage in stages:
        if stage.kind == "dense":
            total += stage.kernel.size
            continue
        taps = stage.kernel.shape[0] * stage.kernel.shape[1]
        if stage.kind != "conv":
            side, taps = 2 * side, taps // 4  # with stride 2, each pixel meets a quarter of the taps
        total += side * side * taps * stage.kernel.shape[2] * stage.kernel.shape[3]
        if stage.kind == "smooth_upsample_conv":
            total += side * side * BLUR.size * stage.kernel.shape[3]
    return total


def onnx_runtime(function: Any, latent_dim: int, path: Path) -> Run:
    """Write a TensorFlow function to `path`; return its function in ONNX Runtime."""
    import onnxruntime
    import tf2onnx

    spec = [tf.TensorSpec((None, latent_dim), tf.float32, name="latents")]
    tf2onnx.convert.from_function(
        tf.function(function, autograph=False), input_signature=spec, opset=18, output_path=str(path)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda latents: session.run(None, {name: latents})[0]


def openvino(path: Path) -> Run:
    """Return a function that runs the model with OpenVINO, in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda latents: compiled(latents)[0]


def saved_model(folder: Path) -> Run:
    """Return a function that runs `serving_default` of the SavedModel in `folder`."""
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    (name,), (output,) = signature.structured_input_signature[1], signature.structured_outputs

    def run(latents: Any, _: Any = loaded) -> Any:  # the variables live as long as `loaded`
        return signature(**{name: tf.constant(latents)})[output].numpy()

    return run


def build_runtimes(version: Path, generator: Any, scratch: Path) -> tuple[dict[str, Run], dict[str, str]]:
    """Return a function per runtime, and an error per missing runtime."""
    latent_dim = generator.input_shape[1]
    plain = in_stock_layers(generator)
    stages = fuse(generator)

    def fused(latents: Any) -> Any:
        return build_function(stages, latent_dim)(latents)  # here: weights from outside would become inputs in ONNX

    def plain_saved_model() -> Run:
        plain.export(str(scratch / "plain"), verbose=False)
        return saved_model(scratch / "plain")

    builders: dict[str, Callable[[], Run]] = {
        "Keras predict, plain": lambda: lambda latents: plain.predict(latents, batch_size=len(latents), verbose=0),
        "plain SavedModel": plain_saved_model,
        OURS: lambda: saved_model(version),
    }
    for kind, function in (("plain", lambda z: plain(z, training=False)), ("fused", fused)):
        file = scratch / f"{kind}.onnx"
        builders[f"ONNX Runtime, {kind}"] = partial(onnx_runtime, function, latent_dim, file)
        builders[f"OpenVINO, {kind}"] = partial(openvino, file)
    runtimes: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for name, build in builders.items():
        try:
            runtimes[name] = build()
        except Exception as error:  # each library has its own
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name} is left out: {left_out[name]}", file=sys.stderr)
    return runtimes, left_out


def difference(run: Run, reference: Run, latents: Any) -> float:
    """Return the largest difference of images of `run` and `reference`, in 1/255."""
    images, expected = (as_pixels(side(latents)) for side in (run, reference))
    return float(np.abs(images - expected).max())


def as_pixels(images: Any) -> Any:
    """Return float64 in [0, 255]."""
    images = np.asarray(images)
    return images.astype(np.float64) if images.dtype == np.uint8 else (images.astype(np.float64) + 1.0) * 127.5


def ms_an_image(run: Run, latents: Any) -> float:
    """Return the milliseconds of one call, per image."""
    run(latents)  # not measured: threads of the previous side may still be spinning
    begin = time.perf_counter()
    run(latents)
    return 1e3 * (time.perf_counter() - begin) / len(latents)


def measure_runtimes(runtimes: dict[str, Run], latents: Any, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return milliseconds an image by batch size and runtime."""
    result: dict[str, Any] = {}
    for size in batches:
        batch = np.ascontiguousarray(latents[:size])
        for run in runtimes.values():
            run(batch)
        times = rounds.take_turns(repeats, {name: partial(ms_an_image, run, batch) for name, run in runtimes.items()})
        result[str(size)] = {
            name: {"ms": rounds.spread(ms), "ours_to_it": rounds.ratio(ms, times[OURS])} for name, ms in times.items()
        }
    return result


def measure_networks(images: Any, latents: Any, repeats: int) -> dict[str, Any]:
    """Return the cost of NETWORKS, and of encoding images of their sizes."""
    result: dict[str, Any] = {}
    sides: dict[tuple[str, str], Callable[[], float]] = {}
    for name, channels in NETWORKS.items():
        stages = fuse(build_generator(latents.shape[1], channels))
        resized = [resize(pixels, 2 << len(channels)) for pixels in images]
        result[name] = {
            "channels": channels,
            "multiply_adds": multiply_adds(stages),
            "png_bytes": round(np.mean([len(encode(pixels, "png", {})) for pixels in resized])),
        }
        spec = tf.TensorSpec((None, latents.shape[1]), tf.float32)
        generate = tf.function(build_function(stages, latents.shape[1]), input_signature=[spec], autograph=False)
        for size in (1, 16):
            sides[name, f"ms_at_batch_{size}"] = partial(ms_an_image, generate, latents[:size])
        sides[name, "encoding_ms"] = partial(
            ms_an_image, lambda images: [encode(pixels, "png", {}) for pixels in images], resized
        )
    for (name, figure), times in rounds.take_turns(repeats, sides).items():
        result[name][figure] = rounds.spread(times)
    return result


def measure(model: Path, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return the result of the whole part."""
    with tempfile.TemporaryDirectory() as folder:
        version = newest_version(model)
        generator = keras_generator(version)
        runtimes, left_out = build_runtimes(version, generator, Path(folder))
        rate, products = matrix_rate(), multiply_adds(fuse(generator))
        rng = np.random.default_rng(0)
        latents = rng.standard_normal((max(batches), generator.input_shape[1])).astype(np.float32)
        images = runtimes[OURS](latents[:16])
        plain = runtimes["plain SavedModel"]
        result = {
            "version": version_name(model),
            "model": {"image_size": int(images.shape[1]), "multiply_adds": products},
            "matrix_gflops": round(rate / 1e9, 1),
            "floor_ms": round(1e3 * 2 * products / rate, 4),
            "rounds": repeats,
            "left_out": left_out,
            "difference_255": {name: round(difference(run, plain, latents), 3) for name, run in runtimes.items()},
            "batches": measure_runtimes(runtimes, latents, batches, repeats),
            "networks": measure_networks(images, latents, repeats),
        }
    show(result, batches)
    return result


def show(result: dict[str, Any], batches: Sequence[int]) -> None:
    """Print milliseconds an image by runtime, and the cost of the networks."""
    print(f"{result['model']['multiply_adds'] / 1e6:.1f} MMAC an image; {result['matrix_gflops']} GFLOP/s")
    rounds.row("ms an image", *(f"batch {size}" for size in batches), "ours at 16", "differs by")
    for name, differs in result["difference_255"].items():
        cells = [f"{result['batches'][str(size)][name]['ms']['median']:.3f}" for size in batches]
        speed = result["batches"].get("16", {}).get(name, {}).get("ours_to_it")
        rounds.row(name, *cells, f"{speed['median']:.2f}x" if speed else "", f"{differs}/255")
    rounds.row("floor", *(f"{result['floor_ms']:.3f}" for _ in batches))
    rounds.row("network", "MMAC", "batch 1, ms", "batch 16, ms", "encoding, ms", "PNG, bytes", width=14)
    for name, network in result["networks"].items():
        ms = [f"{network[key]['median']:.3f}" for key in ("ms_at_batch_1", "ms_at_batch_16", "encoding_ms")]
        rounds.row(name, f"{network['multiply_adds'] / 1e6:.1f}", *ms, network["png_bytes"], width=14)


def main() -> int:
    """Measure, print, and write results/generator.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generator", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/apple"), help="a folder of versions")
    parser.add_argument("--quick", action="store_true", help="batches 1 and 16, few rounds; not written")
    arguments = parser.parse_args()
    batches, repeats = ((1, 16), 7) if arguments.quick else (BATCHES, ROUNDS)
    rounds.write("generator", measure(arguments.model, batches, repeats), quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
