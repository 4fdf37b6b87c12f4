"""docs/benchmarks.md follows from the committed results, and from any subset of the parts."""

import json

import numpy as np
import pytest

from benchmarks import page, rounds
from tests.conftest import SHIPPED

SPREAD = {"median": 2.0, "low": 1.5, "high": 2.5}
MACHINE = {"cores": 2, "vectors": ["avx2"], "memory_gib": 8, "versions": {"tensorflow": "2.0"}}
LOAD = dict.fromkeys(("responses_a_second", "p50_ms", "p95_ms", "p99_ms"), SPREAD)
SERVE = {
    "date": "2000-01-01",
    "machine": MACHINE | {"versions": {"bentoml": "1.0"}},
    "limit_batch": 64,
    "seconds": 2.0,
    "rounds": 3,
    "left_out": {"litserve": "it did not answer."},
    "new_seeds": {
        "1": {"limit": LOAD, "ours": LOAD | {"of_limit": SPREAD, "p50_to_limit": SPREAD}},
        "16": {"limit": LOAD, "ours": LOAD | {"of_limit": SPREAD | {"median": 0.7}}},
    },
    "cached": {"304": LOAD | {"responses_a_second": SPREAD | {"median": 1234567.0}}},
    "processes": {
        "ours": {
            "first_response_s": 3.0,
            "milestones_s": {"gateway": 0.5, "model server": 2.5},
            "memory_mib": {"run": 10.0, "gateway": 80.0, "model-server": 400.0},
            "largest_mib": {"run": 10.0, "gateway": 70.0, "model-server": 400.0},
        }
    },
}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "serve.json").write_text(json.dumps(SERVE))
    return page.read_results(tmp_path)


def test_docs_page_equals_the_rendered_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.read_results(rounds.RESULTS))


def test_page_shows_figures_and_whether_goals_are_met(results):
    rendered = page.render(results)

    assert "| 304 | 1,234,567 (1.50 to 2.50) |" in rendered
    assert "LitServe is left out: it did not answer." in rendered
    assert "| HTTP at 16 clients, share of the limit | at least 0.8 | 0.700 | **not met** |" in rendered
    assert {goal.what: goal.met for goal in page.goals(results)}["304, requests a second"] is True


def test_every_second_round_runs_backwards():
    order = []

    rounds.take_turns(2, {name: lambda name=name: order.append(name) for name in "abc"})

    assert order == [*"abc", *"cba"]


def test_ratio_is_computed_round_by_round():
    assert rounds.ratio([10.0, 40.0, 30.0], [10.0, 20.0, 10.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}


def test_unfused_network_gives_images_of_the_bundled_model():
    import tensorflow as tf

    from benchmarks.weights import keras_generator

    signatures = tf.saved_model.load(str(SHIPPED)).signatures
    seeds = tf.range(8, dtype=tf.int64)
    images = keras_generator(SHIPPED)(signatures["sample"](seeds=seeds)["latents"], training=False)

    expected = signatures["generate"](seeds=seeds)["images"].numpy().astype(int)
    assert np.abs(np.round((np.asarray(images) + 1) * 127.5) - expected).max() <= 1


def test_multiply_adds_count_each_tap_of_each_pixel_once():
    from benchmarks.generator import multiply_adds
    from training.export.fusion import Stage

    def stage(kind, *shape):
        return Stage(kind, np.zeros(shape), np.zeros(shape[-1]), has_activation=True)

    dense = 10 * 4 * 4 * 8
    upsampled = 8 * 8 * (4 * 4 // 4) * 8 * 5  # each pixel of 8 x 8 sees a quarter of 4 x 4 taps
    conv = 8 * 8 * 3 * 3 * 5 * 3
    stages = [stage("dense", 10, 128), stage("upsample_conv", 4, 4, 8, 5), stage("conv", 3, 3, 5, 3)]
    assert multiply_adds(stages) == dense + upsampled + conv
