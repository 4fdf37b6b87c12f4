"""The SavedModel contract: what the exporter writes, seen as a model server sees it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from tests.conftest import LIMIT_S, ROOT, SHIPPED, command
from training.config import TrainingConfig
from training.errors import CheckpointError, ExportError
from training.evaluate.results import Copies, Coverage, Distances, Evaluation, Nearness, Verdict
from training.export.command import ALLOWED_BATCH_SIZES, MAX_BATCH_SIZE, export
from training.export.model_card import ExportChecks, Fault, read_run, write_model_card
from training.model.checkpoints import load_generator
from training.model.latents import MAX_SEED, sample_latents
from training.model.sampling import generate_images
from training.records import read_record, write_record

SEEDS = np.random.default_rng(5).integers(MAX_SEED, size=192, endpoint=True)


@pytest.fixture(scope="module")
def signatures(small_model):
    return tf.saved_model.load(str(small_model / "1")).signatures


def pictures(signatures, seeds) -> np.ndarray:
    return signatures["generate"](seeds=tf.constant(seeds, tf.int64))["images"].numpy()


@pytest.mark.parametrize(
    ("signature", "given", "returned"),
    [
        ("serving_default", ("latents", tf.float32, [None, 128]), [("images", tf.uint8, [None, 32, 32, 3])]),
        ("generate", ("seeds", tf.int64, [None]), [("images", tf.uint8, [None, 32, 32, 3])]),
        ("sample", ("seeds", tf.int64, [None]), [("latents", tf.float32, [None, 128])]),
        ("golden", ("index", tf.int64, [None]), [("seeds", tf.int64, [None]), ("digests", tf.uint8, [None, 32])]),
    ],
)
def test_a_signature_takes_and_returns_what_the_contract_says(signatures, signature, given, returned):
    function = signatures[signature]
    assert [(s.name, s.dtype, s.shape.as_list()) for s in function.structured_input_signature[1].values()] == [given]
    outputs = function.structured_outputs
    assert {(name, s.dtype, *s.shape.as_list()) for name, s in outputs.items()} == {(n, d, *s) for n, d, s in returned}


def test_sample_gives_the_bits_of_ringo_latent_1_for_1000_seeds(signatures):
    seeds = np.random.default_rng(6).integers(MAX_SEED, size=1000, endpoint=True)
    found = signatures["sample"](seeds=tf.constant(seeds))["latents"].numpy()
    assert found.tobytes() == sample_latents(seeds, 128).tobytes()


def test_generate_is_serving_default_after_sample(signatures):
    latents = signatures["sample"](seeds=tf.constant(SEEDS[:8]))["latents"]
    assert np.array_equal(signatures["serving_default"](latents=latents)["images"], pictures(signatures, SEEDS[:8]))


def test_sha256sum_accepts_an_exported_version(small_model):
    version = small_model / "1"
    digests = (version / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert {line.split("  ", 1)[1] for line in digests} == {
        str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()
    } - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=version, check=True, timeout=LIMIT_S)


def test_the_fused_generator_differs_from_the_keras_one_by_at_most_1_of_255(signatures, small_run):
    expected = generate_images(load_generator(small_run).network, SEEDS)
    assert np.abs(pictures(signatures, SEEDS).astype(int) - expected).max() <= 1


# The shipped model was proved where oneDNN has AVX-512; elsewhere an export of one's own paints row by row.
NEEDS_AVX512 = pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text(), reason="without AVX-512, oneDNN rounds by the size of the batch"
)


@pytest.mark.parametrize("model", ["small", pytest.param("shipped", marks=NEEDS_AVX512)])
def test_pictures_are_the_same_bytes_at_every_batch_size_from_1_to_64(model, signatures):
    if model == "shipped":
        signatures = tf.saved_model.load(str(SHIPPED)).signatures
    alone = np.concatenate([pictures(signatures, [seed]) for seed in SEEDS])
    for size in range(2, MAX_BATCH_SIZE + 1):
        batched = np.concatenate([pictures(signatures, SEEDS[i : i + size]) for i in range(0, len(SEEDS), size)])
        assert np.array_equal(batched, alone), f"batches of {size}"


def test_pictures_do_not_depend_on_order_and_company(signatures):
    order = np.random.default_rng(7).permutation(64)
    assert np.array_equal(pictures(signatures, SEEDS[:64][order]), pictures(signatures, SEEDS[:64])[order])
    crowd = np.repeat(SEEDS[:1], 33)
    assert np.array_equal(pictures(signatures, crowd), np.repeat(pictures(signatures, SEEDS[:1]), 33, axis=0))


def test_no_rows_give_no_pictures(signatures):
    assert pictures(signatures, []).shape == (0, 32, 32, 3)


def test_the_graph_asserts_nothing_holds_no_variables_and_asks_for_no_xla(small_model):
    graph = tf.compat.v1.saved_model.load
    with tf.Graph().as_default() as g, tf.compat.v1.Session() as session:
        graph(session, ["serve"], str(small_model / "1"))
        definition = g.as_graph_def()
    nodes = [*definition.node, *(node for f in definition.library.function for node in f.node_def)]
    assert not {n.op for n in nodes} & {"Assert", "VarHandleOp", "VariableV2", "PyFunc"}
    assert not {n.op for n in nodes} & {"FusedBatchNormV3", "ResizeNearestNeighbor"}  # fused away
    assert not any(f.attr["_XlaMustCompile"].b for f in definition.library.function)


def test_a_session_serves_it_as_tensorflow_serving_does(small_model, signatures):
    """A Keras model in a tf.Module loads in Python, but fails every Predict of the genuine server; this shows it."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(small_model / "1"))
        definition = meta.signature_def["generate"]
        fed = {definition.inputs["seeds"].name: SEEDS[:4]}
        found = session.run(definition.outputs["images"].name, fed)
    assert np.array_equal(found, pictures(signatures, SEEDS[:4]))


def golden(signatures, index) -> tuple[np.ndarray, np.ndarray]:
    answered = signatures["golden"](index=tf.constant(index, tf.int64))
    return answered["seeds"].numpy(), answered["digests"].numpy()


def test_the_golden_digests_are_those_of_the_pixels_of_64_seeds(signatures):
    seeds, digests = golden(signatures, range(64))
    assert len(set(seeds.tolist())) == 64
    for seed, digest in zip(seeds, digests, strict=True):
        assert digest.tobytes() == hashlib.sha256(pictures(signatures, [seed]).tobytes()).digest()


@pytest.mark.parametrize("index", [[], [3], [63, 0, 63], [64, -1, 2**62], range(65)])
def test_any_batch_of_golden_indices_is_answered_row_by_row(signatures, index):
    seeds, digests = golden(signatures, range(64))
    rows = np.asarray(index, np.int64) % 64
    found = golden(signatures, index)
    assert np.array_equal(found[0], seeds[rows])
    assert np.array_equal(found[1], digests[rows])


def test_warm_up_requests_cover_every_allowed_batch_size(small_model, signatures):
    records = tf.data.TFRecordDataset(str(small_model / "1" / "assets.extra" / "tf_serving_warmup_requests"))
    requests = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records.as_numpy_iterator()]
    sizes = {"generate": [], "serving_default": []}
    for request in requests:
        (name, tensor), *_ = request.inputs.items()
        signatures[request.model_spec.signature_name](**{name: tf.constant(tf.make_ndarray(tensor))})
        sizes[request.model_spec.signature_name].append(tensor.tensor_shape.dim[0].size)
        assert request.model_spec.name == "fruit"
    assert sizes == {"generate": list(ALLOWED_BATCH_SIZES), "serving_default": list(ALLOWED_BATCH_SIZES)}


def test_the_last_allowed_batch_size_is_the_largest(small_model):
    lines = (small_model / "1" / "batching_params.pbtxt").read_text().splitlines()
    allowed = [int(line.split(":")[1]) for line in lines if line.startswith("allowed_batch_sizes")]
    assert allowed == sorted(allowed)
    assert f"max_batch_size {{ value: {allowed[-1]} }}" in lines


def test_the_card_names_licence_attribution_steps_and_every_hyperparameter(small_model, small_run):
    card = (small_model / "1" / "model_card.md").read_text(encoding="utf-8")
    config = TrainingConfig.from_json((small_run / "config.json").read_text(encoding="utf-8"))
    hyperparameters = [f"| {f.name} | {getattr(config, f.name)} |" for f in fields(config) if f.metadata["fixed"]]
    assert len(hyperparameters) > 10
    for fact in (
        "license: CC0-1.0",
        "drawn by the tests",
        "4 batches of 8: 32 images",
        "The run took 0 h",
        *hyperparameters,
    ):
        assert fact in card


def test_the_card_shows_a_known_fault_with_the_picture_of_its_seed(small_model, small_run):
    version = small_model / "1"
    assert "| ![seed 7](faults/7.png) | 7 | torn at the left |" in (version / "model_card.md").read_text("utf-8")
    with Image.open(version / "faults" / "7.png") as picture:
        assert np.array_equal(picture, generate_images(load_generator(small_run).network, np.array([7]))[0])


@pytest.mark.parametrize("text", ["torn", "x: torn", "-1: torn", "7:", "9223372036854775808: torn"])
def test_a_fault_that_names_no_seed_or_no_fault_is_refused(text):
    with pytest.raises(ExportError, match=r"^--fault is .*: allowed is SEED:TEXT"):
        Fault.parse(text)


DISTANCES = Distances(pictures=56, photos=56, kid_x1000=12.5, kid_x1000_std=0.5, fid=34.5)
EVALUATION = Evaluation(
    model="small",
    batch=4,
    features="a network",
    photos="fruit, 56 photos",
    seeds="10000 to 10055",
    against_all=DISTANCES,
    against_held_out=Distances(pictures=56, photos=6, kid_x1000=23.5, kid_x1000_std=1.5, fid=None),
    copies=Copies(Nearness(2.0, 1.0), None, Nearness(0.2, 0.1), None, Verdict("good", "No sign of copying.", "See 2.")),
    other_judges=(),
    coverage=Coverage("folder", 0.25, {"gala": 0.5, "elstar": 0.5}, {"gala": 1.0, "elstar": 0.0}, ("elstar",)),
    remarks=(),
)


def card_after(evaluation: Evaluation, run: Path, folder: Path) -> str:
    copied = folder / "run"
    shutil.copytree(run, copied)
    write_record(copied / "evaluation.json", asdict(evaluation))
    record = read_run(copied, load_generator(copied))
    folder.joinpath("1").mkdir()
    checks = ExportChecks(largest_difference=0, batch_sizes=64, seeds=64, row_by_row=False, threads="2")
    write_model_card(folder / "1", record, model_name="fruit", licence="", attribution="", checks=checks, faults=[])
    return (folder / "1" / "model_card.md").read_text(encoding="utf-8")


def test_the_card_quotes_the_evaluation_of_its_checkpoint(small_run, tmp_path):
    card = card_after(EVALUATION, small_run, tmp_path)
    for row in (
        "| KID x1000, against all photos | 12.5 ± 0.5 (56 pictures, 56 photos) |",
        "| FID, against all photos | 34.5 (56 of each) |",
        "| KID x1000, against photos held out of training | 23.5 ± 1.5 (56 pictures, 6 photos) |",
        "| copies | No sign of copying. See 2. |",
        "| varieties covered | 1 of 2, told apart by folder; missing: elstar |",
    ):
        assert row in card


def test_the_card_does_not_quote_the_evaluation_of_another_checkpoint(small_run, tmp_path):
    assert "Not evaluated." in card_after(replace(EVALUATION, batch=3), small_run, tmp_path)


def test_the_card_counts_the_batches_that_were_done_not_those_planned(small_run, tmp_path):
    run = tmp_path / "unfinished"
    shutil.copytree(small_run, run)
    (run / "config.json").write_text(TrainingConfig(**read_record(run / "config.json") | {"steps": 9000}).to_json())
    (run / "kid.csv").write_text("step,kid_x1000,std\n2,50.0,1.0\n4,30.0,1.0\n")
    card = card_after(EVALUATION, run, tmp_path)
    assert "4 batches of 8: 32 images. The best of 2 checkpoints measured in 4 batches: KID x1000 30.0" in card


def test_card_names_the_run_that_its_run_grew_from(small_run, tmp_path):
    run = tmp_path / "grown"
    shutil.copytree(small_run, run)
    config = {"image_size": 16, "batch_size": 4, "steps": 9, "refine_from": 7}
    source = {"run": "seedling", "batch": 9, "training_s": 3700, "machine": "x86_64", "processors": 2, "backend": "jax"}
    write_record(run / "grown_from.json", source | {"config": config})
    assert (
        "It grew from the run seedling: 16 px, 36 images, `--steps 9 --refine-from 7`. "
        "That run took 1 h 2 min on x86_64 with 2 processors (jax)."
    ) in card_after(EVALUATION, run, tmp_path)


def test_a_version_says_what_its_training_saw_but_not_where_the_photos_lie(small_model, small_run):
    version, record = small_model / "1", json.loads((small_run / "photos.json").read_text(encoding="utf-8"))
    folder = record.pop("folder")
    assert json.loads((version / "photos.json").read_text(encoding="utf-8")) == {**record, "batch": 4}
    assert (version / "config.json").read_text() == (small_run / "config.json").read_text()
    assert all(folder.encode() not in file.read_bytes() for file in version.rglob("*") if file.is_file())


def test_the_best_checkpoint_is_exported_unless_the_last_is_asked_for(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    with np.load(run / "checkpoint.npz") as file:
        np.savez(run / "best.npz", **dict(file) | {"step": np.array(2)})
    assert [load_generator(run, which).batch for which in ("best", "last")] == [2, 4]


def digests(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_export_is_the_next_version_and_leaves_the_first_alone(small_model, small_run, tmp_path):
    model = tmp_path / "fruit"
    shutil.copytree(small_model, model)
    before = digests(model / "1")
    process = subprocess.run(
        command("training", "export", small_run, "--to", model),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert sorted(p.name for p in model.iterdir()) == ["1", "2"]
    assert digests(model / "1") == before


EVERY_SIZE = """
import sys
import numpy as np, tensorflow as tf
generate = tf.saved_model.load(sys.argv[1]).signatures["generate"]
pictures = [np.asarray(generate(seeds=tf.range(size, dtype=tf.int64))["images"]) for size in range(65)]
assert all(np.array_equal(p, pictures[64][: len(p)]) for p in pictures)
"""


@pytest.mark.parametrize("surroundings", [{"TF_ENABLE_ONEDNN_OPTS": "0"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}])
def test_where_batch_sizes_disagree_the_model_paints_row_by_row(small_run, tmp_path, surroundings):
    process = subprocess.run(
        command("training", "export", small_run, "--to", tmp_path / "fruit"),
        cwd=ROOT,
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    assert "give other bits than batches of 1. The model will paint a batch one row at a time." in process.stdout
    assert "one row at a time" in (tmp_path / "fruit" / "1" / "model_card.md").read_text(encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", EVERY_SIZE, str(tmp_path / "fruit" / "1")],
        env=os.environ | surroundings,
        check=True,
        timeout=240,
    )


def test_a_run_without_a_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        export(tmp_path, tmp_path / "fruit", licence="", attribution="")
