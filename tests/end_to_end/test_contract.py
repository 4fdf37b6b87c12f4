"""Training and serving share no code. This file knows both, and holds them to the artifact between them."""

import numpy as np
import pytest
import tensorflow as tf

from serving.model_client.client import MAX_ROWS, VERIFIED, ModelClient
from serving.model_client.monitor import ModelMonitor
from serving.model_server import prediction_service
from serving.model_server.prediction_service import PredictionService
from serving.model_server.servable import load
from serving.model_server.server import start_server
from serving.model_server.versions import VersionWatcher
from serving.rendering import query
from training.export.command import MAX_BATCH_SIZE
from training.export.signatures import Servable
from training.model.checkpoints import load_generator
from training.model.latents import MAX_SEED
from training.model.sampling import generate_images

SEEDS = np.random.default_rng(8).integers(MAX_SEED, size=MAX_BATCH_SIZE, endpoint=True)


@pytest.fixture(scope="module")
def client(small_model):
    """A client of the embedded model server that holds what training exported."""
    watcher = VersionWatcher(small_model, load, poll_interval_s=3600.0)
    watcher.poll()
    service = PredictionService(watcher, "fruit")
    server, port = start_server(service)
    client = ModelClient(f"127.0.0.1:{port}", "fruit", predict_timeout_s=60.0)
    yield client
    client.close()
    server.stop(None).wait()


def test_the_gateway_takes_the_seeds_that_the_model_takes():
    assert query.MAX_SEED == MAX_SEED


def test_client_sends_as_many_rows_as_the_batching_parameters_allow():
    assert MAX_ROWS == MAX_BATCH_SIZE <= prediction_service.MAX_ROWS


def test_a_replica_on_the_machine_of_the_export_is_proved(client):
    check = ModelMonitor(client).golden_check(1)
    assert (check.fingerprint, check.differing, check.size) == (VERIFIED, 0, 32)


def test_latents_sampled_and_painted_are_the_pixels_of_their_seeds(client):
    assert np.array_equal(client.paint(1, client.sample(1, SEEDS.tolist())), client.generate(1, SEEDS.tolist()))


def test_the_client_gets_the_pixels_of_the_saved_model(client, small_model):
    signatures = tf.saved_model.load(str(small_model / "1")).signatures
    expected = signatures["generate"](seeds=tf.constant(SEEDS))["images"].numpy()
    assert np.array_equal(client.generate(1, SEEDS.tolist()), expected)


def test_the_client_gets_what_the_keras_generator_paints_to_within_1_of_255(client, small_run):
    found = client.generate(1, SEEDS.tolist()).astype(int)
    assert np.abs(found - generate_images(load_generator(small_run).network, SEEDS)).max() <= 1


def test_a_seed_alone_and_in_company_is_one_picture(client):
    together = client.generate(1, SEEDS.tolist())
    alone = [client.generate(1, [seed])[0] for seed in SEEDS.tolist()]
    assert np.array_equal(together, alone)


def test_the_model_server_runs_a_graph_that_paints_row_by_row(small_run, tmp_path):
    servable = Servable(load_generator(small_run), sequential=True)
    tf.saved_model.save(servable, str(tmp_path), signatures=servable.signatures())
    loaded = load(tmp_path)
    together = loaded.run("generate", {"seeds": SEEDS[:3]})["images"]
    alone = [loaded.run("generate", {"seeds": SEEDS[row : row + 1]})["images"][0] for row in range(3)]
    assert np.array_equal(together, alone)
