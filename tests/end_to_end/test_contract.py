"""The SavedModel between training and serving: only this file imports both."""

import io
import json
import runpy

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from werkzeug.http import parse_options_header

from serving.gateway.responses import content_disposition
from serving.model_client.client import MAX_ROWS
from serving.model_server import prediction_service
from serving.rendering import query
from serving.rendering.encoding import encode
from serving.settings import Settings
from tests.conftest import ROOT
from tests.hosted_model_server import hosting
from training.errors import TrainingError
from training.export.command import MAX_BATCH_SIZE, check_model_name
from training.model.latents import MAX_SEED


@pytest.fixture(scope="module")
def model_server(small_model):
    """An embedded model server with an exported version, also for the fixture `gateway`."""
    with hosting(small_model) as hosted:
        yield hosted


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # export refuses most random texts
@given(st.text(max_size=90))
@example("りんご")
@example('café "2"\\')
def test_any_name_that_export_accepts_can_be_served(name):
    try:
        check_model_name(name)
    except TrainingError:
        assume(False)
    assert Settings.from_environment({"RINGO_MODEL_NAME": name}).model_name == name
    header = content_disposition(f"{name}-42.png")
    assert header.isascii()
    assert header.isprintable()
    assert parse_options_header(header)[1]["filename"] == f"{name}-42.png"
    with Image.open(io.BytesIO(encode(np.zeros((2, 2, 3), np.uint8), "png", {"Model": name}))) as image:
        assert image.info["Model"] == name


def test_training_and_serving_have_the_same_limits():
    assert query.MAX_SEED == MAX_SEED
    assert MAX_ROWS == MAX_BATCH_SIZE <= prediction_service.MAX_ROWS


def test_verified_replica_serves_the_pixels_of_the_saved_model(gateway, small_model):
    assert json.loads(gateway.ask("/about").body)["replica"] == "proved"
    seeds = np.random.default_rng(8).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)
    signatures = tf.saved_model.load(str(small_model / "1")).signatures
    expected = signatures["generate"](seeds=tf.constant(seeds))["images"].numpy()
    row = gateway.pixels(f"/grid?seeds={','.join(map(str, seeds))}&columns={len(seeds)}")
    assert np.array_equal(row, np.hstack(expected))


def test_client_of_the_docs_writes_the_pixels_of_the_gateway(gateway, model_server, tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "direct_to_model_server.py"))
    seeds = [7, 42, MAX_SEED]
    script["main"](model_server.target, tmp_path / "apples", seeds)
    for seed in seeds:
        written = np.asarray(Image.open(tmp_path / "apples" / f"{seed}.png"))
        assert np.array_equal(written, gateway.pixels(f"/generate?seed={seed}"))
