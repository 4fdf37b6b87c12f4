"""docs/benchmarks.md is what the committed measurements give, and is made of whatever was measured."""

import json
import re

import numpy as np
import pytest

from benchmarks import page, rounds
from tests.conftest import SHIPPED

SPREAD = {"median": 2.0, "low": 1.5, "high": 2.5}
MACHINE = {"cores": 2, "vectors": ["avx2"], "memory_gib": 8, "versions": {"tensorflow": "2.0"}}
LOAD = dict.fromkeys(("answers_a_second", "p50_ms", "p95_ms", "p99_ms"), SPREAD)
SERVE = {
    "date": "2000-01-01",
    "machine": MACHINE | {"versions": {"bentoml": "1.0"}},
    "limit_batch": 64,
    "seconds": 2.0,
    "rounds": 3,
    "left_out": {"litserve": "it did not answer."},
    "unique": {
        "1": {"limit": LOAD, "ours": LOAD | {"of_limit": SPREAD, "p50_to_limit": SPREAD}},
        "16": {"limit": LOAD, "ours": LOAD | {"of_limit": SPREAD | {"median": 0.7}}},
    },
    "kept": {"304": LOAD | {"answers_a_second": SPREAD | {"median": 1234567.0}}},
    "processes": {
        "ours": {
            "first_answer_s": 3.0,
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


def test_the_page_in_docs_is_what_the_results_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.read_results(rounds.RESULTS))


def test_the_page_shows_only_charts_that_are_there():
    charts = re.findall(r"\]\((.+?\.svg)\)", page.PAGE.read_text(encoding="utf-8"))

    assert charts
    assert all((page.PAGE.parent / chart).is_file() for chart in charts)


def test_figures_come_from_the_results(results):
    rendered = page.render(results)

    assert "| 304 | 1,234,567 (1.50 to 2.50) |" in rendered
    assert "LitServe is left out: it did not answer." in rendered


def test_a_goal_that_is_missed_is_told_beside_one_that_is_met(results):
    met = {goal.what: goal.met for goal in page.goals(results)}

    assert met["HTTP at 16 clients, share of the limit"] is False
    assert met["304, requests a second"] is True
    assert "| HTTP at 16 clients, share of the limit | at least 0.8 | 0.700 | **not met** |" in page.render(results)


def test_what_was_not_measured_is_said_to_be_so(results):
    assert "Not measured: paint, generator, train, memory, scale." in page.render(results)


def test_equal_results_give_equal_charts(results, tmp_path):
    page.write_page(results, tmp_path / "one" / "benchmarks.md")
    page.write_page(results, tmp_path / "two" / "benchmarks.md")

    (chart,) = (tmp_path / "one" / "benchmarks").iterdir()
    assert chart.name == "serve.svg"
    assert chart.read_bytes() == (tmp_path / "two" / "benchmarks" / "serve.svg").read_bytes()


def test_sides_take_turns_there_and_back():
    order = []

    rounds.take_turns(2, {name: lambda name=name: order.append(name) for name in "abc"})

    assert order == [*"abc", *"cba"]


def test_a_ratio_is_taken_round_by_round():
    assert rounds.ratio([10.0, 40.0, 30.0], [10.0, 20.0, 10.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}


def test_the_unfused_network_paints_what_the_shipped_model_paints():
    import tensorflow as tf

    from benchmarks.weights import keras_generator

    signatures = tf.saved_model.load(str(SHIPPED)).signatures
    seeds = tf.range(8, dtype=tf.int64)
    images = keras_generator(SHIPPED)(signatures["sample"](seeds=seeds)["latents"], training=False)

    shipped = signatures["generate"](seeds=seeds)["images"].numpy().astype(int)
    assert np.abs(np.round((np.asarray(images) + 1) * 127.5) - shipped).max() <= 1


def test_the_floor_counts_two_operations_for_each_product():
    from benchmarks.generator import operations
    from training.export.fusion import Stage

    def stage(kind, *shape):
        return Stage(kind, np.zeros(shape), np.zeros(shape[-1]), activated=True)

    dense = 2 * 10 * 4 * 4 * 8
    upsampled = 2 * 8 * 8 * (4 * 4 // 4) * 8 * 5  # each pixel of 8 x 8 sees a quarter of 4 x 4 taps
    conv = 2 * 8 * 8 * 3 * 3 * 5 * 3
    stages = [stage("dense", 10, 128), stage("upsample_conv", 4, 4, 8, 5), stage("conv", 3, 3, 5, 3)]
    assert operations(stages) == dense + upsampled + conv
