"""`python -m training evaluate`, and the network it judges with."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import ROOT, command, draw_photo
from training.data.holdout import split_photos
from training.data.photos import Photos, PhotoSummary, load_photos
from training.errors import RecordError, TrainingError
from training.evaluate.command import evaluate as evaluate_in_process
from training.evaluate.command import find_copies, find_coverage
from training.evaluate.features import build_extractor, build_judges, features_of_photos
from training.evaluate.results import read_evaluation


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


@pytest.fixture(scope="module")
def evaluated(small_run, photos):
    """What the command said of the small run and the photos it was trained on, and wrote: figures and page."""
    done = evaluate(small_run, photos, "--licence", "CC0-1.0")
    assert done.returncode == 0, done.stderr
    written = small_run / "evaluation.json", small_run / "report.html"
    found = read_evaluation(written[0]), written[1].read_text(encoding="utf-8")
    for file in written:
        file.unlink()  # the run is shared with tests of what was never evaluated
    return done.stdout, *found


def test_a_run_is_compared_with_photos_and_the_figures_are_kept(evaluated):
    said, found, _ = evaluated
    assert (found.model, found.batch) == ("small", 4)
    assert (found.against_all.pictures, found.against_all.photos) == (56, 56)
    assert found.against_all.kid_x1000 > 100  # four batches old: noise, not fruit
    assert f"FID, against all photos: {found.against_all.fid} (56 of each)" in said


def test_the_nearest_photo_trained_on_is_told_beside_that_of_held_out_photos(evaluated):
    said, found, _ = evaluated
    assert found.copies.pictures_by_pixels.median > found.copies.held_out_by_pixels.median > 0  # noise is no copy
    assert found.verdict.explanation.startswith("Typical distance to the nearest training photo in pixels at 32x32")
    assert "Typical distance to the nearest training photo in features" in found.verdict.explanation
    assert f"copies: No sign of copying. {found.verdict.explanation}" in said


def test_the_page_of_a_run_lies_beside_its_figures_and_the_command_says_where(evaluated, small_run):
    said, found, page = evaluated
    assert said.endswith(f"Wrote {small_run / 'evaluation.json'}, and {small_run / 'report.html'} to look at.\n")
    for words in (
        found.verdict.explanation,
        "a hundred seeds",
        'alt="seed 99"',
        "The 12 closest of 56 generated pictures",
        "The 6 closest of 6 held-out photos",
        "Seed 6 to seed 7",
        "Batches 1 to 4: generator from",
        "KID was not measured while it learned",
        '<th scope="row"><bdi>batch_size</bdi></th><td><bdi>8</bdi></td>',
        "Held out of training: 6 of 56 photos",
        "<bdi>CC0-1.0</bdi>",
    ):
        assert words.casefold() in page.casefold()


def test_too_few_held_out_photos_for_a_kid_are_told(evaluated):
    said, found, _ = evaluated
    assert found.against_held_out is None
    assert "6 photos held out are too few for a KID (50 are needed)." in said


def test_one_look_for_all_seeds_covers_few_varieties(evaluated):
    _, found, _ = evaluated
    assert found.coverage.rule == "5 clusters of their features"
    assert sum(found.coverage.pictures.values()) == pytest.approx(1, abs=1e-3)
    assert len(found.coverage.missing) >= 3


def test_photos_that_the_training_did_not_see_say_nothing_about_copies(small_run, tmp_path):
    for seed in range(60):
        draw_photo(seed + 100).save(tmp_path / f"{seed}.png")
    found = evaluate_in_process(small_run, tmp_path, out=tmp_path / "out")
    assert found.remarks == (
        "These are not the photos of the training, or not as it read them: nothing can be said about copies.",
    )
    assert (found.copies, found.against_held_out) == (None, None)
    assert read_evaluation(tmp_path / "out" / "evaluation.json") == found


@pytest.fixture(scope="module")
def version_evaluated(small_model, photos, tmp_path_factory):
    """Of the small run's export the figures, the page, what the version changed by, and the folder of all that."""
    version, out = small_model / "1", tmp_path_factory.mktemp("evaluation")
    before = {path: path.stat().st_mtime_ns for path in version.rglob("*")}
    found = evaluate_in_process(version, photos, out=out, attribution="somebody else")
    changed = before.items() ^ {path: path.stat().st_mtime_ns for path in version.rglob("*")}.items()
    return found, (out / "report.html").read_text(encoding="utf-8"), changed, out


def test_a_version_has_the_figures_of_its_run_and_stays_as_it_was(version_evaluated, evaluated):
    found, _, changed, _ = version_evaluated
    _, of_run, _ = evaluated
    assert (found.model, found.batch) == ("fruit, version 1", 4)
    assert found.against_all.kid_x1000 == pytest.approx(of_run.against_all.kid_x1000, rel=0.02)
    assert found.coverage == of_run.coverage
    assert not changed


def test_the_page_of_a_version_quotes_its_card_and_says_that_there_are_no_curves(version_evaluated):
    _, page, _, _ = version_evaluated
    assert "<bdi>CC0-1.0</bdi>" in page
    assert "<bdi>somebody else</bdi>" in page  # what is asked for goes before the card
    assert "The history of its losses is not at hand" in page
    assert "Held out of training: 6 of 56 photos" in page


@pytest.fixture(scope="module")
def copying_version(small_model, small_run, photos, tmp_path_factory) -> Path:
    """A version whose every picture is a photo that the small run was trained on."""
    version = tmp_path_factory.mktemp("models") / "copier" / "1"
    loaded = load_photos(photos, 32, cache_dir=version, memory_limit_bytes=2**30, progress=False)
    seen = tf.constant(loaded.pixels[split_photos(loaded.files, 0.1).training])
    module = tf.Module()
    module.paint = tf.function(
        lambda latents: {"images": tf.gather(seen, tf.cast(tf.abs(latents[:, 0]) * 1e6, tf.int32) % len(seen))},
        input_signature=[tf.TensorSpec((None, 128), tf.float32, name="latents")],
    )
    tf.saved_model.save(module, str(version), signatures={"serving_default": module.paint})
    for name in ("config.json", "photos.json"):
        shutil.copy(small_model / "1" / name, version)
    return version


def test_figures_and_page_say_that_a_generator_copies(copying_version, photos, version_evaluated):
    *_, out = version_evaluated  # which has the features of the photos
    evaluate_in_process(copying_version, photos, out=out)
    found = read_evaluation(out / "evaluation.json")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert found.model == "copier, version 1"
    assert found.verdict.level == "bad"
    assert found.verdict.headline == "The images are closer to the training photos than unseen photos are."
    assert "in pixels at 32x32 (0 is identical): generated 0, unseen photos" in found.verdict.explanation
    assert f'<div class="verdict bad">\n    <strong>{found.verdict.headline}</strong>' in page
    assert found.verdict.explanation in page


def test_a_picture_is_shown_beside_the_photo_of_the_training_that_it_copies():
    pixels = np.stack([np.asarray(draw_photo(seed, 32)) for seed in range(60)])
    files = tuple(f"{number}.png" for number in range(60))
    features = pixels.reshape(60, -1).astype(np.float32)
    split = split_photos(files, 0.1)
    seen = split.training[:20]
    photos = Photos(pixels, files, PhotoSummary("p", 60, 60, {}))
    _, generated, held_out = find_copies(photos, pixels[seen], features, features[seen], split, seen)
    assert np.array_equal(generated.pictures, generated.nearest)
    assert generated.nearest_names == [files[row] for row in seen[:12]]
    assert generated.all_distances.tolist() == [0] * 20
    assert set(held_out.names) == {files[row] for row in split.held_out}
    assert held_out.distances.tolist() == sorted(held_out.all_distances)


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
        ("efficientnet-lite0,vgg", None, "--features 'vgg' is unknown; choose from efficientnet-lite0, "),
        ("efficientnet-lite1", None, "--features 'efficientnet-lite1' is unknown"),
        ("efficientnet-lite0,efficientnet-lite0", None, "--features names efficientnet-lite0 twice"),
    ],
)
def test_judges_that_cannot_be_had_are_one_sentence(tmp_path, network, weights, sentence):
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(TrainingError, match=re.escape(sentence)):
        build_judges(network, weights and tmp_path / weights)


def test_each_judge_has_its_own_figures(small_run, photos, tmp_path, monkeypatch):
    lite0 = build_extractor()
    other = dataclasses.replace(lite0, name="Another", unit=64.0)
    monkeypatch.setattr("training.evaluate.command.build_judges", lambda names, weights, image_size: [lite0, other])
    found = evaluate_in_process(small_run, photos, out=tmp_path, networks="both")
    (judged,) = found.other_judges
    assert judged.features == "Another"
    assert judged.against_all.kid_x1000 != found.against_all.kid_x1000
    assert "KID x1000 by Another, against all photos" in found.rows()
    assert read_evaluation(tmp_path / "evaluation.json") == found


def test_larger_images_are_judged_at_64_px_too():
    judges = build_judges("efficientnet-lite0", image_size=128)
    assert [judge.name for judge in judges] == ["EfficientNet-Lite0", "EfficientNet-Lite0 at 64 px"]
    wide = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    small = np.stack([np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS)) for image in wide])
    np.testing.assert_array_equal(judges[1](wide), judges[0](small))
    assert len(build_judges("efficientnet-lite0", image_size=64)) == 1


def test_a_variety_below_half_its_share_is_named():
    files = tuple(f"{kind}_{number}.jpg" for kind in ("gala", "elstar") for number in range(20))
    features = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    coverage = find_coverage(files, features, features[[*range(16), 20, 21]])
    assert coverage.missing == ("elstar",)
    coverage = find_coverage(files, features, features[[*range(16), 20, 21, 22]])
    assert coverage.sentence().endswith("rare, as a fraction of their share: elstar 0.32")


@pytest.mark.parametrize("text", ["{}", '{"copies": null}', "[]", "{"])
def test_a_damaged_evaluation_is_one_sentence(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RecordError, match=r"evaluation\.json"):
        read_evaluation(tmp_path / "evaluation.json")


def test_a_folder_that_is_neither_run_nor_version_is_told_what_to_name(small_model, photos, tmp_path):
    with pytest.raises(TrainingError) as refused:
        evaluate_in_process(small_model, photos, out=tmp_path / "out")
    assert str(refused.value) == (
        f"{small_model} has neither saved_model.pb nor config.json: name a version of a model, such as "
        "models/apple/1, or the --out folder of a `fit` that has saved a checkpoint."
    )


def test_a_file_where_the_page_is_to_go_is_refused_before_anything_is_read(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"^--out is '.*/file', but .*/file is not a folder; set --out"):
        evaluate_in_process(tmp_path / "nothing", photos, out=tmp_path / "file")


def test_too_few_photos_are_one_sentence(small_run, tmp_path):
    for seed in range(24):
        draw_photo(seed).save(tmp_path / f"{seed}.png")
    done = evaluate(small_run, tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("24 pictures of each kind are too few to compare: at least 50 are needed.\n")
