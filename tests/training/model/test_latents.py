"""ringo-latent/1: the same numbers in every library, and numbers like a standard normal's."""

import math
import re

import jax
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import ROOT
from training.model.latents import MAX_SEED, sample_latents, slerp, standardise, sum_of_uniforms

SPECIFICATION = ROOT / "docs" / "ringo-latent-1.md"


def specification_code() -> str:
    """The ten lines of plain Python that the specification publishes."""
    return re.search(r"```python\n(.*?)```", SPECIFICATION.read_text(encoding="utf-8"), re.DOTALL)[1]


def published_vectors() -> list[tuple[int, int, str]]:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\S+)` \|", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE)
    return [(int(seed), int(index), number) for seed, index, number in rows]


@pytest.fixture(scope="module")
def seeds() -> np.ndarray:
    edges = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**62, MAX_SEED - 1, MAX_SEED]
    drawn = np.random.default_rng(1).integers(MAX_SEED, size=1000 - len(edges), endpoint=True)
    return np.concatenate([np.array(edges, np.int64), drawn])


def test_plain_python_gives_the_bits_of_numpy_for_1000_seeds(seeds):
    plain: dict = {}
    exec(specification_code(), plain)
    columns = range(0, 128, 3)
    expected = sample_latents(seeds, 128)[:, columns]
    assert [[plain["latent"](int(seed), i) for i in columns] for seed in seeds] == expected.tolist()


@pytest.mark.parametrize("xla", [False, True], ids=["plain", "xla"])
def test_tensorflow_gives_the_bits_of_numpy_for_1000_seeds(seeds, xla):
    @tf.function(jit_compile=xla, autograph=False)
    def sample(low, high):
        return standardise(tf.cast(sum_of_uniforms(low, high, 128, tf.bitwise.right_shift), tf.float32))

    found = sample(tf.constant(seeds & 0xFFFFFFFF, tf.uint32), tf.constant(seeds >> 32, tf.uint32))
    assert found.numpy().tobytes() == sample_latents(seeds, 128).tobytes()


def test_jax_gives_the_bits_of_numpy_for_1000_seeds(seeds):
    @jax.jit
    def sample(low, high):
        return standardise(sum_of_uniforms(low, high, 128, jax.numpy.right_shift).astype("float32"))

    found = sample((seeds & 0xFFFFFFFF).astype(np.uint32), (seeds >> 32).astype(np.uint32))
    assert np.asarray(found).tobytes() == sample_latents(seeds, 128).tobytes()


def test_the_published_vectors_hold():
    vectors = published_vectors()
    assert len(vectors) >= 20
    found = [sample_latents(np.array([seed]), 128)[0, index].item() for seed, index, _ in vectors]
    assert found == [float(number) for _, _, number in vectors]


def test_a_latent_does_not_depend_on_its_length():
    assert np.array_equal(sample_latents(np.array([7]), 16), sample_latents(np.array([7]), 512)[:, :16])


def test_every_number_is_a_multiple_of_two_to_the_minus_16_within_6(seeds):
    latents = sample_latents(seeds, 128).astype(np.float64)
    assert np.abs(latents).max() <= 6
    assert np.array_equal(latents * 2**16, np.rint(latents * 2**16))


# Bounds are five standard errors for the sample size: one false alarm in two million, and the seeds are fixed anyway.
N = 8000


@pytest.fixture(scope="module", params=["neighbours", "high words", "random"])
def sample(request) -> np.ndarray:
    chosen = {
        "neighbours": np.arange(N),
        "high words": np.arange(N) << 32,
        "random": np.random.default_rng(2).integers(MAX_SEED, size=N, endpoint=True),
    }
    return sample_latents(chosen[request.param].astype(np.int64), 128).astype(np.float64)


def test_mean_is_0_and_variance_1(sample):
    assert abs(sample.mean()) < 5 / math.sqrt(sample.size)
    assert abs(sample.var() - 1) < 5 * math.sqrt(1.9 / sample.size)  # 1.9: fourth moment 2.9 less 1


def test_tails_are_those_of_a_sum_of_twelve_uniforms(sample):
    # P(|z| > 3) of the Irwin-Hall distribution of order 12, from its exact distribution function.
    tail = 2 * sum((-1) ** k * math.comb(12, k) * (3 - k) ** 12 for k in range(4)) / math.factorial(12)
    found = (np.abs(sample) > 3).mean()
    assert abs(found - tail) < 5 * math.sqrt(tail / sample.size)


def test_neighbouring_seeds_are_uncorrelated(sample):
    products = sample[:-1].T @ sample[1:] / math.sqrt(N - 1)  # 128 x 128 correlations in standard errors
    assert np.abs(products).max() < 6
    assert abs(products.std() - 1) < 0.03


def test_numbers_within_a_latent_are_uncorrelated(sample):
    products = (sample.T @ sample / math.sqrt(N))[~np.eye(128, dtype=bool)]
    assert np.abs(products).max() < 6
    assert abs(products.std() - 1) < 0.03


def test_slerp_goes_from_one_latent_to_the_other_without_a_detour():
    first, last = sample_latents(np.array([3, 9]), 128)
    way = slerp(first, last, 9)
    assert way.dtype == np.float32
    np.testing.assert_allclose(way[[0, -1]], [first, last], rtol=1e-6)
    unit = way.astype(np.float64) / np.linalg.norm(way, axis=1, keepdims=True)
    angles = np.arccos((unit[:-1] * unit[1:]).sum(axis=1))
    assert angles.sum() == pytest.approx(np.arccos(unit[0] @ unit[-1]))


def test_slerp_of_unit_latents_stays_on_the_sphere_in_steps_of_one_angle():
    first, last = np.eye(2, 128, dtype=np.float32)
    expected = np.zeros((4, 128))
    expected[:, :2] = [[math.cos(a), math.sin(a)] for a in (0, math.pi / 6, math.pi / 3, math.pi / 2)]
    np.testing.assert_allclose(slerp(first, last, 4), expected, atol=1e-7)


@pytest.mark.parametrize("nudge", [0.0, 1e-7, 1e-5, 1e-3])
def test_slerp_of_nearly_parallel_latents_is_the_straight_way(nudge):
    first, other = sample_latents(np.array([3, 9]), 128)
    last = first + np.float32(nudge) * other
    np.testing.assert_allclose(slerp(first, last, 5), np.linspace(first, last, 5), atol=1e-5)


def test_between_opposite_latents_there_is_no_shortest_way():
    (latent,) = sample_latents(np.array([3]), 128)
    with pytest.raises(ValueError, match="opposite"):
        slerp(latent, -latent, 5)
