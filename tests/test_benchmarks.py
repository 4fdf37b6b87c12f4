"""docs/benchmarks.md shows the committed results; its figures are computed correctly."""

import numpy as np

from benchmarks import page, rounds
from tests.conftest import BUNDLED


def test_docs_pages_equal_the_rendered_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.read_results(rounds.RESULTS))
    text = page.OPERATIONS.read_text(encoding="utf-8")
    assert page.SIZES_BEGIN in text
    assert text == page.with_sizes(text, page.read_results(rounds.RESULTS))


def test_ratio_is_computed_round_by_round():
    assert rounds.ratio([10.0, 40.0, 30.0], [10.0, 20.0, 10.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}


def test_unfused_network_gives_images_of_the_bundled_model():
    import tensorflow as tf

    from benchmarks.weights import keras_generator

    signatures = tf.saved_model.load(str(BUNDLED)).signatures
    seeds = tf.range(8, dtype=tf.int64)
    images = keras_generator(BUNDLED)(signatures["sample"](seeds=seeds)["latents"], training=False)

    expected = signatures["generate"](seeds=seeds)["images"].numpy().astype(int)
    assert np.abs(np.round((np.asarray(images) + 1) * 127.5) - expected).max() <= 1


def test_multiply_adds_count_each_tap_of_each_pixel_once():
    from benchmarks.generator import multiply_adds
    from training.export.fusion import Stage

    dense = 10 * 4 * 4 * 8
    upsampled = 8 * 8 * (4 * 4 // 4) * 8 * 5  # each pixel of 8 x 8 sees a quarter of 4 x 4 taps
    conv = 8 * 8 * 3 * 3 * 5 * 3
    shapes = {"dense": (10, 128), "upsample_conv": (4, 4, 8, 5), "conv": (3, 3, 5, 3)}
    stages = [Stage(kind, np.zeros(shape), np.zeros(shape[-1]), has_activation=True) for kind, shape in shapes.items()]
    assert multiply_adds(stages) == dense + upsampled + conv
