"""ringo-latent/1: equal bits in every library."""

import math
import re

import jax
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ROOT
from training.model.latents import MAX_SEED, sample_latents, slerp, standardise, sum_of_uniforms

SPECIFICATION = (ROOT / "docs" / "ringo-latent-1.md").read_text(encoding="utf-8")
EDGES = np.array([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**62, MAX_SEED - 1, MAX_SEED])
SEEDS = np.r_[EDGES, np.random.default_rng(1).integers(MAX_SEED, size=1000 - len(EDGES), endpoint=True)]


def test_plain_python_latents_equal_numpy_bits_for_1000_seeds():
    plain: dict = {}
    exec(re.search(r"```python\n(.*?)```", SPECIFICATION, re.DOTALL)[1], plain)
    columns = range(0, 128, 3)
    expected = sample_latents(SEEDS, 128)[:, columns]
    assert [[plain["latent"](int(seed), i) for i in columns] for seed in SEEDS] == expected.tolist()


@tf.function(jit_compile=True, autograph=False)
def sample_by_xla(low, high):
    return standardise(tf.cast(sum_of_uniforms(low, high, 128, tf.bitwise.right_shift), tf.float32))


@jax.jit
def sample_by_jax(low, high):
    return standardise(sum_of_uniforms(low, high, 128, jax.numpy.right_shift).astype("float32"))


@pytest.mark.parametrize("sample", [sample_by_xla, sample_by_jax])
def test_compiled_latents_equal_numpy_bits_for_1000_seeds(sample):
    actual = sample((SEEDS & 0xFFFFFFFF).astype(np.uint32), (SEEDS >> 32).astype(np.uint32))
    assert np.asarray(actual).tobytes() == sample_latents(SEEDS, 128).tobytes()


def test_latents_match_the_published_vectors():
    vectors = re.findall(r"^\| (\d+) \| (\d+) \| `(\S+)` \|", SPECIFICATION, re.MULTILINE)
    assert len(vectors) >= 20
    # The shortest latents with this index: numbers do not depend on latent_dim.
    actual = [sample_latents(np.array([int(seed)]), int(index) + 1)[0, -1].item() for seed, index, _ in vectors]
    assert actual == [float(number) for _, _, number in vectors]


def test_slerp_takes_equal_angles_when_latents_have_unit_length():
    first, last = np.eye(2, 128, dtype=np.float32)
    expected = np.zeros((4, 128))
    expected[:, :2] = [[math.cos(a), math.sin(a)] for a in (0, math.pi / 6, math.pi / 3, math.pi / 2)]
    np.testing.assert_allclose(slerp(first, last, 4), expected, atol=1e-7)
