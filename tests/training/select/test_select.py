"""`python -m training select`, and the latents that a selector chooses."""

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import ROOT
from tests.training.evaluate.test_report import EVALUATION
from training.__main__ import main
from training.evaluate.generator import load_generator_under_test
from training.export.command import export
from training.export.model_card import Fault, read_run
from training.model.checkpoints import load_generator
from training.model.latents import MAX_SEED, sample_latents
from training.model.selector import CANDIDATES, Selector, save_selector
from training.records import write_record
from training.select.anomalies import PhotoDistance, save_distances
from training.select.objective import train_selector

SEEDS = np.random.default_rng(5).integers(MAX_SEED, size=40, endpoint=True)


def select(run: Path, photos: Path, *flags: object) -> int:
    return main(["select", str(run), "--photos", str(photos), *map(str, flags)])


@pytest.fixture(scope="module")
def selected(small_run, photos, tmp_path_factory) -> Path:
    """A copy of the small run with a selector, trained for 20 steps on 512 images."""
    run = shutil.copytree(small_run, tmp_path_factory.mktemp("selected") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.select.command.CHUNK", 128)
        patch.setattr("training.select.objective.STEPS", 20)
        assert select(run, photos, "--images", 512) == 0
    return run


@pytest.fixture(scope="module")
def version(selected, tmp_path_factory) -> Path:
    models, faults = tmp_path_factory.mktemp("models") / "fruit", [Fault(7, "torn")]
    return export(selected, models, licence="CC0-1.0", attribution="tests", faults=faults)


@pytest.fixture(scope="module")
def signatures(version):
    return tf.saved_model.load(str(version)).signatures


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """The number of images of each measured chunk; chunks have 128 images, and a selector trains for two steps."""
    monkeypatch.setattr("training.select.command.CHUNK", 128)
    monkeypatch.setattr("training.select.objective.STEPS", 2)
    sizes, measure = [], PhotoDistance.__call__
    monkeypatch.setattr(PhotoDistance, "__call__", lambda self, x: sizes.append(len(x)) or measure(self, x))
    return sizes


def test_card_names_the_specification_and_the_selector(selected, version):
    card = (version / "model_card.md").read_text(encoding="utf-8")
    assert "`sample` maps seeds to latents by `ringo-latent/2`" in card
    assert f"Its selector {load_generator(selected).selector.digest} chooses the latent of a seed among 8" in card


def test_sample_of_a_version_equals_the_selectors_bits(selected, signatures):
    actual = signatures["sample"](seeds=tf.constant(SEEDS))["latents"].numpy()
    assert actual.tobytes() == load_generator(selected).sample_latents(SEEDS).tobytes()


def test_selector_chooses_one_of_eight_candidates_of_each_seed(selected):
    latents = load_generator(selected).sample_latents(SEEDS)
    candidates = sample_latents(SEEDS, 8 * 128).reshape(-1, 8, 128)
    equal = (candidates == latents[:, None]).all(axis=2)
    assert (equal.sum(axis=1) == 1).all()
    assert len(set(equal.argmax(axis=1))) > 1


def test_generate_of_a_version_renders_the_chosen_latents(signatures):
    latents = signatures["sample"](seeds=tf.constant(SEEDS))["latents"]
    images = signatures["generate"](seeds=tf.constant(SEEDS))["images"].numpy()
    assert np.array_equal(images, signatures["serving_default"](latents=latents)["images"])


def test_scores_have_equal_bits_in_tensorflow_for_any_batch_size(selected):
    selector = load_generator(selected).selector
    latents = np.random.default_rng(0).normal(size=(1000, 128))
    expected = selector.score(latents, np.round)
    assert len(np.unique(expected)) > 900
    for size in (1, 7, 1000):
        assert np.array_equal(selector.score(tf.constant(latents[:size]), tf.round), expected[:size])


def test_selector_avoids_faults_and_keeps_both_varieties():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(4096, 4)).astype(np.float32)
    features = np.where(latents[:, :1] > 0, [[3.0, 0.0]], [[0.0, 3.0]]).astype(np.float32)  # two varieties
    anomaly_scores = latents[:, 1] + latents[:, 0]  # one has more faults
    selector = train_selector(latents, features, anomaly_scores, features[:500], weight=100.0)
    groups = rng.normal(size=(1000, CANDIDATES, 4)).astype(np.float32)
    chosen = groups[np.arange(1000), selector.choose(groups)]
    assert chosen[:, 1].mean() < -0.7
    assert (chosen[:, 0] > 0).mean() > 0.25  # 0.14 without KID


def test_select_measures_no_chunk_twice_when_interrupted_or_repeated(run, photos, monkeypatch, measured):
    with monkeypatch.context() as patch:
        patch.setattr("training.select.command.save_distances", interrupt_after_saving)
        assert select(run, photos, "--images", 384) == 130
    assert select(run, photos, "--images", 384) == 0
    assert select(run, photos, "--images", 384, "--weight", 50) == 0
    assert measured == [128, 128, 128]


def interrupt_after_saving(*arguments):
    save_distances(*arguments)
    raise KeyboardInterrupt


def test_select_measures_a_chunk_again_when_damaged_or_of_another_generator(run, photos, measured):
    assert select(run, photos, "--images", 256) == 0
    damaged, other = sorted((run / "selection").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with np.load(other) as file:
        content = dict(file)
    np.savez(other, **content | {"key": "of another generator"})
    assert select(run, photos, "--images", 256) == 0
    assert measured == [128, 128, 128, 128]


def test_select_prints_outliers_and_kid_with_and_without_the_selector(run, photos, monkeypatch, measured, capsys):
    monkeypatch.setattr("training.select.command.train_selector", lambda *_, **__: FIRST_NUMBER)
    assert select(run, photos, "--images", 1280) == 0
    output = capsys.readouterr().out
    shares = re.search(r"furthest from the photos: ([\d.]+) %, before ([\d.]+) %", output)
    assert all(0 < float(share) < 25 for share in shares.groups())  # a random choice
    kids = re.search(r"EfficientNet-Lite1, against the training photos: ([\d.]+), before ([\d.]+)\.", output)
    assert float(kids[1]) == pytest.approx(float(kids[2]), rel=0.3)


def test_outliers_and_kid_stay_when_the_first_candidate_always_wins(run, photos, monkeypatch, measured, capsys):
    equal_scores = Selector.from_weights([np.zeros((128, 1), np.float32), np.zeros(1, np.float32)])
    monkeypatch.setattr("training.select.command.train_selector", lambda *_, **__: equal_scores)
    assert select(run, photos, "--images", 256) == 0
    figures = re.findall(r": (-?\d+\.\d)(?: %)?, before (-?\d+\.\d)", capsys.readouterr().out)
    assert len(figures) == 2
    assert all(after == before for after, before in figures)


# Scores a latent by its first number.
FIRST_NUMBER = Selector.from_weights([np.eye(128, 1, dtype=np.float32), np.zeros(1, np.float32)])


def test_page_of_ringo_latent_2_chooses_like_the_selector(selected):
    page = (ROOT / "docs" / "ringo-latent-2.md").read_text(encoding="utf-8")
    plain: dict = {"np": np}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], plain)
    selector = load_generator(selected).selector
    candidates = sample_latents(SEEDS, CANDIDATES * 128).reshape(-1, CANDIDATES, 128)
    expected = [plain["choose"](rows.astype(np.float64), selector.layers) for rows in candidates]
    assert np.array_equal(selector.sample_latents(SEEDS, 128), expected)


def test_first_of_equal_scores_wins():
    candidates = np.zeros((1, CANDIDATES, 128), np.float32)
    candidates[0, (3, 5), 0] = 2.0
    assert FIRST_NUMBER.choose(candidates).tolist() == [3]


def test_samples_and_faults_show_the_chosen_latents(selected, version):
    (image,) = load_generator(selected).generate_images(np.array([7]))
    assert main(["samples", str(selected), "--seeds", "7"]) == 0
    for file in (selected / "samples" / "7.png", version / "faults" / "7.png"):
        with Image.open(file) as written:
            assert np.array_equal(written, image)


@pytest.mark.parametrize("part", ["run", "version"])
def test_evaluate_measures_the_chosen_latents(selected, version, part):
    generator = load_generator_under_test({"run": selected, "version": version}[part], "best")
    assert np.array_equal(generator.sample_latents(SEEDS), load_generator(selected).sample_latents(SEEDS))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--images", 100), "--images is 100; set it to a multiple of 2048, at least 4096."),
        (("--images", 5000), "--images is 5000; set it to a multiple of 2048, at least 4096."),
        (("--weight", "inf"), "--weight is inf; set it to a number from 0 up."),
        (("--weight", "-1"), "--weight is -1.0; set it to a number from 0 up."),
        (("--weight", "nan"), "--weight is nan; set it to a number from 0 up."),
    ],
)
def test_select_names_the_range_when_a_number_is_outside(small_run, photos, capsys, flags, message):
    assert select(small_run, photos, *flags) == 2
    assert message in capsys.readouterr().err


def test_select_refuses_photos_of_another_training(small_run, photos, tmp_path, capsys):
    other = shutil.copytree(photos, tmp_path / "other")
    (other / "00.png").unlink()
    assert select(small_run, other) == 2
    assert f"{other} has other photos than the training of {small_run}; set --photos to its folder." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("content", [b"", b"PK", "another network"])
def test_samples_names_the_remedy_when_the_selector_is_damaged(run, capsys, content):
    if isinstance(content, str):
        network = [np.ones((5, 1), np.float32), np.ones(1, np.float32)]
        save_selector(Selector.from_weights(network), run / "selector.npz", generator=load_generator(run).digest)
    else:
        (run / "selector.npz").write_bytes(content)
    assert main(["samples", str(run)]) == 2
    assert "delete the file, then run `select` again." in capsys.readouterr().err


def test_card_quotes_no_evaluation_of_another_selector(selected):
    write_record(selected / "evaluation.json", asdict(replace(EVALUATION, batch=4)))
    assert read_run(selected, load_generator(selected)).evaluation is None
    digest = load_generator(selected).selector.digest
    write_record(selected / "evaluation.json", asdict(replace(EVALUATION, batch=4, selector=digest)))
    assert read_run(selected, load_generator(selected)).evaluation is not None


def test_selector_of_another_checkpoint_is_not_used_and_named(selected, run, capsys):
    selector = load_generator(selected).selector
    save_selector(selector, run / "selector.npz", generator="another")
    assert load_generator(run).selector is None
    assert "selector.npz belongs to another checkpoint" in capsys.readouterr().out
