"""`python -m training evaluate`, and the network it judges with."""

import dataclasses
import pickle
import re
import subprocess

import numpy as np
import pytest

from tests.conftest import ROOT, command, draw_photo
from training.errors import RecordError, TrainingError
from training.evaluate import evaluate as evaluate_in_process
from training.evaluate import find_copies, find_coverage
from training.features import build_extractor, features_of_photos, read_weights
from training.figures import read_evaluation
from training.holdout import split_photos
from training.photos import Photos, PhotoSummary


def evaluate(run, photos, *flags: object) -> subprocess.CompletedProcess[str]:
    words = command("training", "evaluate", run, "--photos", photos, *flags)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_features_are_those_of_another_implementation():
    """The expected numbers come from the same weights run by ONNX Runtime, with a reader of their own."""
    y, x = np.mgrid[:64, :64]
    picture = np.stack([x * 4, y * 4, (x * y) % 256], axis=-1).astype(np.uint8)
    (found,) = build_extractor()(picture[None])
    assert found.shape == (1280,)
    assert np.argsort(found)[-5:].tolist() == [403, 949, 917, 113, 897]
    np.testing.assert_allclose(np.sort(found)[-5:], [3.3736653, 3.5613675, 3.564218, 4.16533, 4.24896], rtol=1e-4)
    assert found.mean() == pytest.approx(0.220241, rel=1e-4)


def test_a_file_of_weights_cannot_run_code(tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(subprocess.Popen))
    with pytest.raises(pickle.UnpicklingError, match=r"subprocess\.Popen has no place"):
        read_weights(tmp_path / "weights.pth")


@pytest.fixture(scope="module")
def evaluated(small_run, photos):
    """What the command said and wrote of the small run and the photos it was trained on."""
    done = evaluate(small_run, photos)
    assert done.returncode == 0, done.stderr
    written = small_run / "evaluation.json"
    found = read_evaluation(written)
    written.unlink()  # the run is shared with tests of what was never evaluated
    return done.stdout, found


def test_a_run_is_compared_with_photos_and_the_figures_are_kept(evaluated):
    said, found = evaluated
    assert (found.model, found.batch) == ("small", 4)
    assert (found.against_all.pictures, found.against_all.photos) == (56, 56)
    assert found.against_all.kid_x1000 > 100  # four batches old: noise, not fruit
    assert f"FID, against all photos: {found.against_all.fid} (56 of each)" in said


def test_the_nearest_photo_trained_on_is_told_beside_that_of_held_out_photos(evaluated):
    said, found = evaluated
    assert found.copies.pictures_by_pixels.median > found.copies.held_out_by_pixels.median > 0  # noise is no copy
    assert found.copies.verdict.startswith("No sign of copying: half of 56 pictures")
    assert f"copies: {found.copies.verdict}" in said


def test_too_few_held_out_photos_for_a_kid_are_told(evaluated):
    said, found = evaluated
    assert found.against_held_out is None
    assert "6 photos held out are too few for a KID (50 are needed)." in said


def test_one_look_for_all_seeds_covers_few_varieties(evaluated):
    _, found = evaluated
    assert found.coverage.rule == "5 clusters of their features"
    assert sum(found.coverage.pictures.values()) == pytest.approx(1, abs=1e-3)
    assert len(found.coverage.missing) >= 3


def test_photos_that_the_training_did_not_see_say_nothing_about_copies(small_run, tmp_path):
    for seed in range(60):
        draw_photo(seed + 100).save(tmp_path / f"{seed}.png")
    found = evaluate_in_process(small_run, tmp_path, out=tmp_path / "out").evaluation
    assert found.remarks == ("These are not the photos of the training: nothing can be said about copies.",)
    assert (found.copies, found.against_held_out) == (None, None)
    assert read_evaluation(tmp_path / "out" / "evaluation.json") == found


def test_a_version_has_the_figures_of_its_run_and_stays_as_it_was(small_model, photos, tmp_path, evaluated):
    version = small_model / "1"
    before = {path: path.stat().st_mtime_ns for path in version.rglob("*")}
    found = evaluate_in_process(version, photos, out=tmp_path).evaluation
    _, of_run = evaluated
    assert (found.model, found.batch) == ("fruit, version 1", 4)
    assert found.against_all.kid_x1000 == pytest.approx(of_run.against_all.kid_x1000, rel=0.02)
    assert found.coverage == of_run.coverage
    assert {path: path.stat().st_mtime_ns for path in version.rglob("*")} == before


def test_pictures_that_are_photos_of_the_training_are_called_copies():
    pixels = np.stack([np.asarray(draw_photo(seed, 32)) for seed in range(60)])
    features = pixels.reshape(60, -1).astype(np.float32)
    split = split_photos([f"{number}.png" for number in range(60)], 0.1)
    seen = split.training[:20]
    copies, rows, distances = find_copies(pixels, pixels[seen], features, features[seen], split)
    assert copies.verdict.startswith("The pictures come closer to the photos trained on than new photos do")
    assert split.training[rows].tolist() == seen.tolist()
    assert distances.tolist() == [0] * 20


def test_a_variety_that_no_picture_is_near_is_missing():
    files = tuple(f"{kind}_{number}.jpg" for kind in ("gala", "elstar", "topaz") for number in range(20))
    features = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    coverage = find_coverage(files, features, features[:40] + 0.1)
    assert coverage.missing == ("topaz",)
    assert coverage.pictures == {"elstar": 0.5, "gala": 0.5, "topaz": 0.0}


def test_a_second_evaluation_reads_the_features_of_the_photos(tmp_path):
    photos = Photos(np.zeros((3, 32, 32, 3), np.uint8), ("a", "b", "c"), PhotoSummary("p", 3, 3, {}))
    first = features_of_photos(build_extractor(), photos, tmp_path)
    refuses = dataclasses.replace(build_extractor(), network=None)
    assert np.array_equal(features_of_photos(refuses, photos, tmp_path), first)


@pytest.mark.parametrize(
    ("network", "weights", "sentence"),
    [
        ("inception", None, "--features inception needs --weights FILE"),
        ("inception", "nowhere.h5", "nowhere.h5 is no HDF5 file"),
        ("inception", "text.h5", "text.h5 is no HDF5 file"),
        ("efficientnet-lite0", "text.h5", "text.h5 is for --features inception"),
    ],
)
def test_weights_that_cannot_judge_are_one_sentence(tmp_path, network, weights, sentence):
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(TrainingError, match=re.escape(sentence)):
        build_extractor(network, weights and tmp_path / weights)


@pytest.mark.parametrize("text", ["{}", '{"copies": null}', "[]", "{"])
def test_a_damaged_evaluation_is_one_sentence(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RecordError, match=r"evaluation\.json"):
        read_evaluation(tmp_path / "evaluation.json")


def test_too_few_photos_are_one_sentence(small_run, tmp_path):
    for seed in range(24):
        draw_photo(seed).save(tmp_path / f"{seed}.png")
    done = evaluate(small_run, tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("24 pictures of each kind are too few to compare: at least 50 are needed.\n")
