"""The SavedModel between training and serving: only this file imports both."""

import io
import runpy
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from werkzeug.http import parse_options_header

from serving.gateway.responses import content_disposition
from serving.model_client.client import MAX_ROWS, VERIFIED, ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.model_server import prediction_service
from serving.rendering import query
from serving.rendering.encoding import encode
from serving.settings import Settings
from tests.conftest import LIMIT_S, ROOT
from tests.gateway_process import gateway_for
from tests.hosted_model_server import hosting
from training.errors import ExportError
from training.export.command import MAX_BATCH_SIZE, check_model_name
from training.model.latents import MAX_SEED

SEEDS = np.random.default_rng(8).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)


@pytest.fixture(scope="module")
def target(small_model) -> Iterator[str]:
    """The address of an embedded model server with an exported version."""
    with hosting(small_model) as hosted:
        yield hosted.target


@pytest.fixture(scope="module")
def client(target) -> Iterator[ModelClient]:
    client = ModelClient(target, "apple", predict_timeout_s=LIMIT_S)
    yield client
    client.close()


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # export refuses most random texts
@given(st.text(max_size=90))
@example("りんご")
@example('café "2"\\')
def test_any_name_that_export_accepts_can_be_served(name):
    try:
        check_model_name(name)
    except ExportError:
        assume(False)
    assert Settings.from_environment({"RINGO_MODEL_NAME": name}).model_name == name
    header = content_disposition(f"{name}-42.png")
    assert header.isascii()
    assert header.isprintable()
    assert parse_options_header(header)[1]["filename"] == f"{name}-42.png"
    png = encode(np.zeros((2, 2, 3), np.uint8), "png", {"Model": name})
    with Image.open(io.BytesIO(png)) as image:
        assert image.info["Model"] == name


def test_gateway_and_model_have_the_same_largest_seed():
    assert query.MAX_SEED == MAX_SEED


def test_client_sends_as_many_rows_as_the_batching_parameters_allow():
    assert MAX_ROWS == MAX_BATCH_SIZE <= prediction_service.MAX_ROWS


def test_replica_is_verified_on_the_machine_of_the_export(client):
    check = ModelMonitor(client).golden_check(1)
    assert (check.fingerprint, check.differing, check.size) == (VERIFIED, 0, 32)


def test_client_gets_the_pixels_of_the_saved_model(client, small_model):
    signatures = tf.saved_model.load(str(small_model / "1")).signatures
    expected = signatures["generate"](seeds=tf.constant(SEEDS))["images"].numpy()
    assert np.array_equal(client.generate(1, SEEDS.tolist()), expected)


def test_image_is_the_same_alone_in_a_batch_and_from_its_latent(client):
    batch = client.generate(1, SEEDS.tolist())
    alone = [client.generate(1, [seed])[0] for seed in SEEDS.tolist()]
    assert np.array_equal(alone, batch)
    assert np.array_equal(client.paint(1, client.sample(1, SEEDS.tolist())), batch)


def test_client_of_the_docs_writes_the_pixels_of_the_gateway(target, tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "direct_to_model_server.py"))
    seeds = [7, 42, MAX_SEED]
    script["main"](target, tmp_path / "apples", seeds)
    with gateway_for(target, tmp_path) as gateway:
        for seed in seeds:
            expected = np.asarray(Image.open(io.BytesIO(gateway.ask(f"/generate?seed={seed}").body)))
            assert np.array_equal(np.asarray(Image.open(tmp_path / "apples" / f"{seed}.png")), expected)
