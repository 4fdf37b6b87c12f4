"""The SavedModel contract of exported versions."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from tests.conftest import BUNDLED, LIMIT_S, command
from tests.training.evaluate.test_report import EVALUATION
from tests.training.fit.test_command import read_files
from tests.training.fit.test_environment import run_in_root
from training.config import TrainingConfig, read_config
from training.errors import TrainingError
from training.export.command import MAX_BATCH_SIZE, export, write_digests
from training.export.model_card import Fault, read_run, write_model_card
from training.fit.run import ModelRecord, SourceRecord
from training.model.checkpoints import load_generator
from training.model.latents import MAX_SEED, sample_latents
from training.model.sampling import generate_images
from training.records import write_record

SEEDS = np.random.default_rng(5).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)


@pytest.fixture(scope="module")
def signatures(small_model):
    return tf.saved_model.load(str(small_model / "1")).signatures


def run_generate(signatures, seeds) -> np.ndarray:
    return signatures["generate"](seeds=tf.constant(seeds, tf.int64))["images"].numpy()


@pytest.mark.parametrize(
    ("signature", "inputs", "outputs"),
    [
        ("serving_default", {"latents": (tf.float32, [None, 128])}, {"images": (tf.uint8, [None, 32, 32, 3])}),
        ("generate", {"seeds": (tf.int64, [None])}, {"images": (tf.uint8, [None, 32, 32, 3])}),
        ("sample", {"seeds": (tf.int64, [None])}, {"latents": (tf.float32, [None, 128])}),
        ("golden", {"index": (tf.int64, [None])}, {"seeds": (tf.int64, [None]), "digests": (tf.uint8, [None, 32])}),
    ],
)
def test_signatures_match_the_contract(signatures, signature, inputs, outputs):
    function = signatures[signature]
    for specs, expected in ((function.structured_input_signature[1], inputs), (function.structured_outputs, outputs)):
        assert {name: (spec.dtype, spec.shape.as_list()) for name, spec in specs.items()} == expected


def test_sample_equals_ringo_latent_1_bits_for_1000_seeds(signatures):
    seeds = np.random.default_rng(6).integers(MAX_SEED, size=1000, endpoint=True)
    actual = signatures["sample"](seeds=tf.constant(seeds))["latents"].numpy()
    assert actual.tobytes() == sample_latents(seeds, 128).tobytes()


def test_generate_equals_serving_default_after_sample(signatures):
    latents = signatures["sample"](seeds=tf.constant(SEEDS[:8]))["latents"]
    assert np.array_equal(signatures["serving_default"](latents=latents)["images"], run_generate(signatures, SEEDS[:8]))


def test_sha256sum_accepts_an_exported_version(small_model):
    version = small_model / "1"
    digests = (version / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    files = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()}
    assert {line.split("  ", 1)[1] for line in digests} == files - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=version, check=True, timeout=LIMIT_S)


@pytest.mark.parametrize("model", ["small", "bundled"])
def test_images_are_equal_bytes_at_every_batch_size_up_to_64(model, signatures):
    if model == "bundled":
        signatures = tf.saved_model.load(str(BUNDLED)).signatures
    expected = np.concatenate([run_generate(signatures, [seed]) for seed in SEEDS])
    for size in range(MAX_BATCH_SIZE + 1):
        assert np.array_equal(run_generate(signatures, SEEDS[:size]), expected[:size]), f"batches of {size}"


def test_graph_has_no_assertions_variables_or_xla(small_model):
    with tf.Graph().as_default() as g, tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(small_model / "1"))
        definition = g.as_graph_def()
    nodes = [*definition.node, *(node for f in definition.library.function for node in f.node_def)]
    assert not {n.op for n in nodes} & {"Assert", "VarHandleOp", "VariableV2", "PyFunc"}
    assert not {n.op for n in nodes} & {"FusedBatchNormV3", "ResizeNearestNeighbor"}  # fused
    assert not any(f.attr["_XlaMustCompile"].b for f in definition.library.function)


@pytest.mark.parametrize("index", [[], [63, 0, 63, 64, -1, 2**62]])
def test_golden_returns_one_row_per_index(signatures, index):
    every, some = (signatures["golden"](index=tf.constant(rows, tf.int64)) for rows in (range(64), index))
    assert len({*every["seeds"].numpy().tolist()}) == 64
    for name in ("seeds", "digests"):
        assert np.array_equal(some[name], every[name].numpy()[np.asarray(index, np.int64) % 64])


def test_warm_up_requests_cover_every_allowed_batch_size(small_model, signatures):
    records = tf.data.TFRecordDataset(str(small_model / "1" / "assets.extra" / "tf_serving_warmup_requests"))
    requests = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records.as_numpy_iterator()]
    sizes = {"generate": [], "serving_default": []}
    for request in requests:
        (name, tensor), *_ = request.inputs.items()
        signatures[request.model_spec.signature_name](**{name: tf.constant(tf.make_ndarray(tensor))})
        sizes[request.model_spec.signature_name].append(tensor.tensor_shape.dim[0].size)
        assert request.model_spec.name == "fruit"
    parameters = (small_model / "1" / "batching_params.pbtxt").read_text()
    allowed = [int(size) for size in re.findall(r"allowed_batch_sizes: (\d+)", parameters)]
    assert sizes == {"generate": allowed, "serving_default": allowed}
    assert f"max_batch_size {{ value: {max(allowed)} }}" in parameters


def test_card_names_licence_attribution_and_hyperparameters(small_model, small_run):
    card = (small_model / "1" / "model_card.md").read_text(encoding="utf-8")
    config = read_config(small_run / "config.json")
    hyperparameters = [f"| {f.name} | {getattr(config, f.name)} |" for f in fields(config) if f.metadata["fixed"]]
    assert len(hyperparameters) > 10
    facts = ('license: "CC0-1.0"', "drawn by the tests", "4 batches of 8: 32 images", "The run took 0 h")
    assert [fact for fact in (*facts, *hyperparameters) if fact not in card] == []


def test_card_shows_the_image_of_a_known_fault(small_model, small_run):
    version = small_model / "1"
    assert "| ![seed 7](faults/7.png) | 7 | torn at the left |" in (version / "model_card.md").read_text("utf-8")
    with Image.open(version / "faults" / "7.png") as image:
        assert np.array_equal(image, generate_images(load_generator(small_run).network, np.array([7]))[0])


@pytest.mark.parametrize("text", ["torn", "x: a", "-1: a", "7:", "9223372036854775808: a", "9" * 5000 + ": a"])
def test_fault_is_refused_when_seed_or_text_is_missing(text):
    with pytest.raises(TrainingError, match=r"^--fault is .*; set it to SEED:TEXT"):
        Fault.parse(text)


def write_card(run: Path, evaluation=EVALUATION) -> str:
    write_record(run / "evaluation.json", asdict(evaluation))
    record = read_run(run, load_generator(run))
    write_model_card(run, record, model="fruit", licence="", attribution="", checks="", faults=[])
    return (run / "model_card.md").read_text(encoding="utf-8")


def test_card_quotes_the_evaluation_of_its_own_checkpoint_alone(run):
    assert "Not evaluated." in write_card(run)
    card = write_card(run, replace(EVALUATION, batch=4))
    for row in (
        "| KID x1000, against all photos | 43.58 ± 2.5 (1,900 images, 1,900 photos) |",
        "| FID, against all photos | 42.49 (1,900 of each) |",
        "| KID x1000, against photos held out of training | 43.58 ± 2.5 (1,900 images, 190 photos) |",
        "| copies | It is new. See 15. |",
        "| varieties covered | 1 of 2, identified by folder; missing: elstar |",
    ):
        assert row in card


def test_card_counts_finished_batches_not_planned_ones(run):
    write_record(run / "config.json", asdict(replace(read_config(run / "config.json"), steps=9000)))
    (run / "kid.csv").write_text("step,kid_x1000,std,minutes\n2,50.0,1.0,1\n4,30.0,1.0,2\n")
    summary = "4 batches of 8: 32 images. The best of 2 checkpoints measured in 4 batches: KID x1000 30.0"
    assert summary in write_card(run)
    (run / "kid.csv").write_text("step,kid_x1000,std,minutes\n2,20.0,1.0,1\n4,30.0,1.0,2\n")
    assert "Not the best, but one of 2 checkpoints measured in 4 batches: KID x1000 30.0" in write_card(run)


def test_card_names_all_sources_when_the_source_run_has_some(run):
    config = TrainingConfig(image_size=32, batch_size=4, steps=9, refine_from=7)
    apple = ModelRecord("apple, version 3", {"Licence": "X"})
    seed = SourceRecord(60, "jax", "x86_64", 2, run="seed", batch=5, config=config, started_from=apple)
    source = SourceRecord(3700, "jax", "x86_64", 2, run="seedling", batch=9, config=config, grown_from=seed)
    assert replace(source, grown_from=None) == source  # older records lack it
    write_record(run / "grown_from.json", asdict(source))
    assert (
        "It grew from the run seedling: 32 px, 36 images, `--steps 9 --refine-from 7`. "
        "That run took 1 h 2 min, last on x86_64 with 2 processors (jax). "
        "The run seedling grew from the run seed: 32 px, 20 images, `--steps 9 --refine-from 7`. "
        "That run took 0 h 1 min, last on x86_64 with 2 processors (jax). "
        "The run seed started from the weights of apple, version 3 (Licence: X)."
    ) in write_card(run)


def test_version_records_its_photos_but_not_their_folder(small_model, small_run):
    version, record = small_model / "1", json.loads((small_run / "photos.json").read_text(encoding="utf-8"))
    folder, of_version = record.pop("folder"), {"folder": None, "fates": None, "batch": 4}
    assert json.loads((version / "photos.json").read_text(encoding="utf-8")) == record | of_version
    assert (version / "config.json").read_text() == (small_run / "config.json").read_text()
    assert all(folder.encode() not in file.read_bytes() for file in version.rglob("*") if file.is_file())


@pytest.mark.parametrize(("keep_best", "batches"), [(True, [2, 4]), (False, [4, 4])])
def test_load_generator_takes_the_best_checkpoint_if_the_run_measures_kid(run, monkeypatch, keep_best, batches):
    write_record(run / "config.json", asdict(replace(read_config(run / "config.json"), keep_best=keep_best)))
    with np.load(run / "checkpoint.npz") as file:
        np.savez(run / "best.npz", **dict(file) | {"step": np.array(2)})
    opened, open_archive = [], np.lib.npyio.NpzFile
    monkeypatch.setattr("numpy.lib.npyio.NpzFile", lambda file: opened.append(file) or open_archive(file))
    assert [load_generator(run, which).batch for which in ("best", "last")] == batches
    assert len(opened) == 2  # `fit` may replace a checkpoint between two reads


def test_export_writes_no_version_when_nothing_is_new(small_model, small_run, tmp_path, capsys):
    model = shutil.copytree(small_model, tmp_path / "fruit")
    for facts in ({"licence": "CC0-1.0", "faults": [Fault(7, "torn at the left")]}, {"licence": "not stated"}):
        assert export(small_run, model, attribution="drawn by the tests", **facts) == model / "1"
        assert "1 has the same images and all these facts on its model card; no version" in capsys.readouterr().out
    assert [p.name for p in model.iterdir()] == ["1"]


def test_export_takes_the_next_number_when_its_own_is_taken_meanwhile(small_model, small_run, tmp_path, monkeypatch):
    model = tmp_path / "fruit"

    def write_digests_during_another_export(folder):
        write_digests(folder)
        if not (model / "1").exists():
            shutil.copytree(small_model / "1", model / "1")

    monkeypatch.setattr("training.export.command.write_digests", write_digests_during_another_export)
    facts = {"licence": "caf\udce9: | #1", "attribution": "a\udce9", "faults": [Fault.parse("3:b\udce9|")]}  # not UTF-8
    version = export(small_run, model, **facts)
    assert sorted(path.name for path in model.iterdir()) == ["1", "2"]
    assert read_files(model / "1") == read_files(small_model / "1")
    card = (version / "model_card.md").read_text(encoding="utf-8")
    assert [text for text in ("# fruit, version 2\n", "caf\\xe9", "a\\xe9", "b\\xe9\\|") if text not in card] == []
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "caf\\xe9: | #1"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=version, check=True, timeout=LIMIT_S)


def test_export_runs_rows_one_by_one_when_batch_sizes_disagree(small_run, tmp_path):
    words = command("training", "export", small_run, "--to", tmp_path / "fruit")
    process = run_in_root(*words, TF_ENABLE_ONEDNN_OPTS="0")  # Eigen rounds by the size of the batch
    assert process.returncode == 0, process.stderr
    sentence = "give other bits than batches of 1. The exported model runs the rows of a batch one by one."
    assert sentence in process.stdout
    assert "Rows run one by one." in (tmp_path / "fruit" / "1" / "model_card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("run_name", "model", "sentence"),
    [
        ("run", "fruit", r"\(Object missing required field `model`\); run `evaluate` again\.$"),
        ("run", "run/config.json", r"config.json is not a folder; set --to to a folder\.$"),
        ("nothing", "fruit", "has no config.json"),
    ],
)
def test_export_is_refused_when_a_folder_or_the_evaluation_is_wrong(run, run_name, model, sentence):
    (run / "evaluation.json").write_text('{"copies": null}')
    with pytest.raises(TrainingError, match=sentence):
        export(run.parent / run_name, run.parent / model, licence="", attribution="")
