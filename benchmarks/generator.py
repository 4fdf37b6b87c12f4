"""The generator alone, by what runs it, in milliseconds a picture: python -m benchmarks.generator.

The weights are the shipped ones for all. Plain is the network in Keras's own layers, as people write it; as trained, it
upsamples and convolves in one operation; fused, it is as it is exported today, and shipped as it was exported then. The
floor is its arithmetic at the speed at which this machine multiplies large matrices.
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
from benchmarks.weights import keras_generator, newest_version
from training.export.fusion import Stage, build_function, fuse
from training.model.networks import BLUR

THREADS = len(os.sched_getaffinity(0))  # of all sides; TensorFlow's own default, too
BATCHES = (1, 2, 4, 8, 16, 32)
ROUNDS = 20
MATRIX = 2048  # 16 MB each: beyond what a core's own cache holds
OURS = "fused SavedModel"

Run = Callable[[Any], Any]  # latents float32[N, latent_dim] -> images [N, S, S, 3]


def matrix_rate() -> float:
    """Return how many float32 operations a second a large matrix product does here, the best of several."""
    a, b = tf.random.normal((MATRIX, MATRIX)), tf.random.normal((MATRIX, MATRIX))
    product = tf.function(tf.matmul)
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        product(a, b).numpy()
        times.append(time.perf_counter() - begin)
    return 2.0 * MATRIX**3 / min(times)


def operations(stages: Sequence[Stage]) -> int:
    """Return the float32 operations of one picture: two for each product, without padding's zeros being left out."""
    total, side = 0, 4
    for stage in stages:
        if stage.kind == "dense":
            total += 2 * stage.kernel.size
            continue
        taps = stage.kernel.shape[0] * stage.kernel.shape[1]
        if stage.kind != "conv":
            side, taps = 2 * side, taps // 4  # a stride of 2 meets a quarter of them at each pixel
        total += 2 * side * side * taps * stage.kernel.shape[2] * stage.kernel.shape[3]
        if stage.kind == "smooth_upsample_conv":
            total += 2 * side * side * BLUR.size * stage.kernel.shape[3]
    return total


def onnx_file(function: Any, latent_dim: int, path: Path) -> Path:
    """Write a function of TensorFlow to `path` as ONNX; return `path`."""
    import tf2onnx

    spec = [tf.TensorSpec((None, latent_dim), tf.float32, name="latents")]
    tf2onnx.convert.from_function(
        tf.function(function, autograph=False), input_signature=spec, opset=18, output_path=str(path)
    )
    return path


def onnx_runtime(path: Path) -> Run:
    """Return what runs the model in `path` by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda latents: session.run(None, {name: latents})[0]


def openvino(path: Path, precision: str) -> Run:
    """Return what runs the model in `path` by OpenVINO: it takes bf16 by itself where the processor has it."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda latents: compiled(latents)[0]


def build_sides(version: Path, scratch: Path) -> tuple[dict[str, Run], dict[str, str], list[Stage], int]:
    """Return what runs the generator by its name, who was left out and why, its stages, and its latent's size."""
    generator = keras_generator(version)
    latent_dim = generator.input_shape[1]
    stages = fuse(generator)

    def fused(latents: Any) -> Any:
        return build_function(stages, latent_dim)(latents)  # here: weights from outside would become inputs in ONNX

    plain = in_stock_layers(generator)

    def savedmodel(folder: Path) -> Run:
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures["serving_default"]
        (name,), (output,) = signature.structured_input_signature[1], signature.structured_outputs
        # `loaded` holds the variables.
        return lambda latents, loaded=loaded: signature(**{name: tf.constant(latents)})[output].numpy()

    def export(model: Any) -> Path:
        folder = scratch / model.name
        model.export(str(folder), verbose=False)
        return folder

    def export_fused() -> Path:
        latents = tf.TensorSpec((None, latent_dim), tf.float32, name="latents")
        signature = tf.function(fused, input_signature=[latents], autograph=False).get_concrete_function()
        tf.saved_model.save(tf.Module(), str(scratch / "fused"), signatures=signature)
        return scratch / "fused"

    makers: dict[str, Callable[[], Run]] = {
        "Keras predict, plain": lambda: lambda latents: plain.predict(latents, batch_size=len(latents), verbose=0),
        "plain SavedModel": lambda: savedmodel(export(plain)),
        "SavedModel as trained": lambda: savedmodel(export(generator)),
        OURS: lambda: savedmodel(export_fused()),
        "bundled SavedModel": lambda: savedmodel(version),
    }
    for kind, function in (("plain", lambda z: plain(z, training=False)), ("fused", fused)):
        file = scratch / f"{kind}.onnx"
        makers[f"ONNX Runtime, {kind}"] = lambda f=function, p=file: onnx_runtime(onnx_file(f, latent_dim, p))
        makers[f"OpenVINO, {kind}"] = lambda p=file: openvino(p, "f32")
    makers["OpenVINO, fused, bf16"] = lambda: openvino(scratch / "fused.onnx", "bf16")
    sides: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            sides[name] = make()
        except Exception as error:  # each library has its own
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name} is left out: {left_out[name]}", file=sys.stderr)
    return sides, left_out, stages, latent_dim


def difference(run: Run, reference: Run, latents: Any) -> float:
    """Return by how much the images of `run` differ from those of `reference` at most, in 1/255."""
    mine, theirs = ((as_pixels(side(latents))) for side in (run, reference))
    return float(np.abs(mine - theirs).max())


def as_pixels(images: Any) -> Any:
    """Return float64 in [0, 255]."""
    images = np.asarray(images)
    return images.astype(np.float64) if images.dtype == np.uint8 else (images.astype(np.float64) + 1.0) * 127.5


def measure(model: Path, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return the result of the whole part."""
    with tempfile.TemporaryDirectory() as folder:
        sides, left_out, stages, latent_dim = build_sides(newest_version(model), Path(folder))
        rate, flops = matrix_rate(), operations(stages)
        rng = np.random.default_rng(0)
        latents = rng.standard_normal((max(batches), latent_dim)).astype(np.float32)
        plain = sides["plain SavedModel"]
        differences = {name: round(difference(run, plain, latents), 3) for name, run in sides.items()}
        told: dict[str, Any] = {}
        for size in batches:
            chosen = np.ascontiguousarray(latents[:size])

            def ms(run: Run, chosen: Any = chosen) -> float:
                run(chosen)  # not measured: threads of the one before may still be spinning
                begin = time.perf_counter()
                run(chosen)
                return 1e3 * (time.perf_counter() - begin) / len(chosen)

            for run in sides.values():
                ms(run)
            times = rounds.take_turns(repeats, {name: partial(ms, run) for name, run in sides.items()})
            told[str(size)] = {
                name: {"ms": rounds.spread(mine), "ours_to_it": rounds.ratio(mine, times[OURS])}
                for name, mine in times.items()
            }
        result = {
            "model": {"image_size": int(sides[OURS](latents[:1]).shape[1]), "operations": flops},
            "matrix_gflops": round(rate / 1e9, 1),
            "floor_ms": round(1e3 * flops / rate, 4),
            "rounds": repeats,
            "left_out": left_out,
            "difference_255": differences,
            "batches": told,
        }
    show(result, batches)
    return result


def show(result: dict[str, Any], batches: Sequence[int]) -> None:
    """Print a table: milliseconds a picture, and how many times as fast ours is."""
    print(f"{result['model']['operations'] / 1e6:.1f} million operations a picture; {result['matrix_gflops']} GFLOP/s")
    rounds.row("ms a picture", *(f"batch {size}" for size in batches), "ours at 16", "differs by")
    for name, unlike in result["difference_255"].items():
        cells = [f"{result['batches'][str(size)][name]['ms']['median']:.3f}" for size in batches]
        of = result["batches"].get("16", {}).get(name, {}).get("ours_to_it")
        rounds.row(name, *cells, f"{of['median']:.2f}x" if of else "", f"{unlike}/255")
    rounds.row("floor", *(f"{result['floor_ms']:.3f}" for _ in batches))


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
