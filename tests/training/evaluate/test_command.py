"""`python -m training evaluate`, and its feature networks."""

import io
import os
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras.layers import AveragePooling2D, Flatten
from PIL import Image

from tests.conftest import draw_photo
from tests.photo_files import load
from training.__main__ import main
from training.config import read_config
from training.data.dataset import describe_photos
from training.data.holdout import split_photos
from training.data.photos import Photos, PhotoSummary
from training.errors import TrainingError
from training.evaluate.command import evaluate as evaluate_in_process
from training.evaluate.copies import check_copies
from training.evaluate.features import Extractor, build_extractor, build_extractors, features_of_photos
from training.evaluate.results import Evaluation
from training.evaluate.varieties import find_varieties, measure_coverage
from training.records import read_record, write_record


def test_features_equal_those_of_onnx_runtime():
    """The expected numbers come from ONNX Runtime with the same weights."""
    y, x = np.mgrid[:64, :64]
    image = np.stack([x * 4, y * 4, (x * y) % 256], axis=-1).astype(np.uint8)
    (features,) = build_extractor()(image[None])
    assert features.shape == (1280,)
    assert np.argsort(features)[-5:].tolist() == [403, 949, 917, 113, 897]
    np.testing.assert_allclose(np.sort(features)[-5:], [3.3736653, 3.5613675, 3.564218, 4.16533, 4.24896], rtol=1e-4)
    assert features.mean() == pytest.approx(0.220241, rel=1e-4)


@pytest.fixture(scope="module")
def evaluated(small_run, photos):
    """Return output, results and report of `evaluate` for the small run."""
    with redirect_stdout(io.StringIO()) as output:
        assert main(["evaluate", str(small_run), "--photos", str(photos), "--licence", "MIT"]) == 0
    written = small_run / "evaluation.json", small_run / "report.html"
    results = read_record(written[0], Evaluation), written[1].read_text(encoding="utf-8")
    for file in written:
        file.unlink()  # other tests need the shared run without an evaluation
    return output.getvalue(), *results


def test_evaluate_compares_a_run_with_photos_and_saves_the_results(evaluated):
    output, evaluation, _ = evaluated
    assert (evaluation.model, evaluation.batch) == ("small", 4)
    assert (evaluation.against_all.images, evaluation.against_all.photos) == (56, 56)
    assert evaluation.against_all.kid_x1000 > 100  # after four batches, images are noise
    assert f"FID, against all photos: {evaluation.against_all.fid} (56 of each)" in output
    assert evaluation.coverage.rule == "5 clusters of features"
    assert sum(evaluation.coverage.images.values()) == pytest.approx(1, abs=1e-3)
    assert len(evaluation.coverage.missing) >= 3  # all seeds give similar images
    assert evaluation.against_held_out is None
    assert "6 held-out photos are too few for a KID; provide at least 50." in output
    copies, explanation = evaluation.copies, evaluation.verdict.explanation
    assert copies.images_by_pixels.median > copies.others_by_pixels.median > 0  # noise is not a copy
    assert explanation.startswith("Typical distance to the nearest training photo in pixels at 32x32")
    assert "Typical distance to the nearest training photo in features" in explanation
    assert f"copies: No sign of copying. {explanation}" in output


def test_evaluate_writes_a_report_and_prints_its_path(evaluated, small_run):
    output, evaluation, page = evaluated
    assert output.endswith(f"Wrote {small_run / 'evaluation.json'}. Open {small_run / 'report.html'} in a browser.\n")
    for words in (
        evaluation.verdict.explanation,
        "a hundred seeds",
        'alt="seed 99"',
        "The 12 closest of 56 generated images",
        "The 6 closest of 6 held-out photos",
        "Seed 6 to seed 7",
        "Batches 1 to 4: generator from",
        "The run folder has no measurements of KID",
        '<th scope="row"><bdi>batch_size</bdi></th><td><bdi>8</bdi></td>',
        "Held out of training: 6 of 56 photos",
        '<th scope="row"><bdi>Licence of these weights</bdi></th><td><bdi>MIT</bdi></td>',
    ):
        assert words.casefold() in page.casefold()


@pytest.fixture
def extractors(monkeypatch) -> list[Extractor]:
    """Return two cheap feature networks, which replace those of `evaluate`."""
    sides = {"Coarse": 16, "Fine": 8}
    networks = [keras.Sequential([keras.Input((32, 32, 3)), AveragePooling2D(n), Flatten()]) for n in sides.values()]
    extractors = [Extractor(name, network) for name, network in zip(sides, networks, strict=True)]
    monkeypatch.setattr("training.evaluate.command.build_extractors", lambda names, weights, image_size: extractors)
    return extractors


def test_copies_are_unchecked_when_photos_are_not_those_of_the_training(extractors, small_run, tmp_path):
    (folder := tmp_path / "caf\udce9").mkdir()  # not UTF-8
    for seed in range(60):
        draw_photo(seed + 100).save(folder / f"{seed}.png")
    evaluation = evaluate_in_process(small_run, folder, out=tmp_path / "out")
    assert evaluation.photos == "caf\\xe9, 60 photos"
    assert evaluation.remarks == ("The photos differ from those of the training, so copies cannot be checked.",)
    assert (evaluation.copies, evaluation.against_held_out) == (None, None)
    assert read_record(tmp_path / "out" / "evaluation.json", Evaluation) == evaluation
    (fine,) = evaluation.other_features
    assert (fine.features, fine.against_all == evaluation.against_all) == ("Fine", False)
    assert "KID x1000 by Fine, against all photos" in evaluation.format_rows()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Distances to the training photos were not measured, so copies are not checked." in page


def test_evaluate_corrects_black_levels_when_the_training_did(extractors, small_run, photos, tmp_path):
    run, veiled = shutil.copytree(small_run, tmp_path / "run"), tmp_path / "veiled"
    veiled.mkdir()
    for photo in photos.iterdir():
        with Image.open(photo) as image:
            image.point(lambda value: 50 + value * 205 // 255).save(veiled / f"{photo.stem}.png")
    config = replace(read_config(run / "config.json"), correct_black_level=True)
    write_record(run / "config.json", asdict(config))
    corrected = load(veiled, config.image_size, correct_black_level=True)
    split = split_photos(corrected.files, config.holdout_fraction)
    write_record(run / "photos.json", asdict(describe_photos(corrected, split)))
    assert evaluate_in_process(run, veiled, out=tmp_path / "out").copies


def test_version_has_the_results_of_its_run_and_stays_unchanged(extractors, small_model, small_run, photos, tmp_path):
    version, out = shutil.copytree(small_model, tmp_path / "fruit") / "1", tmp_path / "version"
    card = version / "model_card.md"
    card.write_bytes(card.read_text(encoding="utf-8").replace("drawn", "dessiné").encode("latin-1"))
    times = {path: path.stat().st_mtime_ns for path in version.rglob("*")}
    evaluation = evaluate_in_process(version, photos, out=out, rights={"Attribution": "another author"})
    run_evaluation = evaluate_in_process(small_run, photos, out=tmp_path / "run")
    assert (evaluation.model, evaluation.batch) == ("fruit, version 1", 4)
    assert evaluation.against_all.kid_x1000 == pytest.approx(run_evaluation.against_all.kid_x1000, rel=0.02)
    assert evaluation.coverage == run_evaluation.coverage
    assert times == {path: path.stat().st_mtime_ns for path in version.rglob("*")}
    page = (out / "report.html").read_text(encoding="utf-8")
    # The licence is from the card, the attribution from the argument.
    for words in ("<bdi>CC0-1.0</bdi>", "<bdi>another author</bdi>", "The history of losses is not available"):
        assert words in page


def test_copied_images_are_detected_and_paired_with_their_photos():
    pixels = np.stack([np.asarray(draw_photo(seed, 32)) for seed in range(60)])
    files = tuple(f"{number}.png" for number in range(60))
    features = pixels.reshape(60, -1).astype(np.float32)
    split = split_photos(files, 0.1)
    copied = split.training[:20]
    photos = Photos(pixels, files, PhotoSummary("p", 60, 60, {}))
    by_pixels, generated, held_out = check_copies(photos, pixels[copied], features, -features[copied], split, copied)
    by_features, _, _ = check_copies(photos, 255 - pixels[copied], features, features[copied], split, copied)
    for check in (by_pixels, by_features):
        assert check.verdict.headline == "The images are closer to the training photos than other photos are."
    assert np.array_equal(generated.images, generated.nearest)
    assert generated.nearest_names == [files[row] for row in copied[:12]]
    assert generated.all_distances.tolist() == [0] * 20
    assert set(held_out.names) == {files[row] for row in split.held_out}
    assert held_out.distances.tolist() == sorted(held_out.all_distances)


@pytest.mark.parametrize("shape", [(), (2, 12), (3, 11)])
def test_photo_features_are_cached_and_computed_again_when_damaged(extractors, tmp_path, shape):
    photos = Photos(np.zeros((3, 32, 32, 3), np.uint8), ("a", "b", "c"), PhotoSummary("p", 3, 3, {}))
    first = features_of_photos(extractors[0], photos, tmp_path)
    without_network = replace(extractors[0], network=SimpleNamespace(output_shape=(None, 12)))
    assert np.array_equal(features_of_photos(without_network, photos, tmp_path), first)
    (cache,) = tmp_path.iterdir()
    np.save(cache, np.zeros(shape, np.float32))
    os.truncate(cache, cache.stat().st_size if shape else 0)
    assert np.array_equal(features_of_photos(extractors[0], photos, tmp_path), first)


@pytest.mark.parametrize(
    ("networks", "weights", "sentence"),
    [
        ("efficientnet-lite0,efficientnet-lite1", None, "lite1' is unknown; choose from efficientnet-lite0, "),
        ("efficientnet-lite0,efficientnet-lite0", None, "--features names efficientnet-lite0 twice"),
        ("efficientnet-lite0", "text.h5", "text.h5 is for --features inception; leave it out."),
        ("inception", None, "--features inception has no weights; set --weights"),
        ("inception", "nowhere.h5", "nowhere.h5 does not fit; set --weights to the HDF5 file"),
        ("inception", "text.h5", "text.h5 does not fit; set --weights to the HDF5 file"),
    ],
)
def test_extractors_are_refused_when_unknown_or_without_weights(tmp_path, networks, weights, sentence):
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(TrainingError, match=re.escape(sentence)):
        build_extractors(networks, weights and tmp_path / weights)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, while saving
def test_inception_is_a_feature_network_when_its_weights_are_given(tmp_path):
    inception = keras.applications.InceptionV3(include_top=False, weights=None, pooling="avg")
    inception.save_weights(tmp_path / "inception.weights.h5")
    (extractor,) = build_extractors("inception", tmp_path / "inception.weights.h5")
    assert extractor.name.startswith("Inception v3 (Keras), weights ")
    assert extractor.network.output_shape == (None, 2048)


def test_extractors_also_scale_down_to_64_px_when_images_are_larger():
    extractors = build_extractors("efficientnet-lite0", image_size=128)
    assert [extractor.name for extractor in extractors] == ["EfficientNet-Lite0", "EfficientNet-Lite0 at 64 px"]
    large = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    small = np.stack([np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS)) for image in large])
    np.testing.assert_array_equal(extractors[1](large), extractors[0](small))
    assert len(build_extractors("efficientnet-lite0", image_size=64)) == 1


def test_variety_is_missing_or_rare_by_its_share_of_the_images():
    files = tuple(f"{kind}_{number}.jpg" for kind in ("gala", "elstar") for number in range(20))
    features = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    varieties = find_varieties(files, features)
    coverage = measure_coverage(varieties, features, features[[*range(16), 20, 21]])
    assert (coverage.missing, coverage.images) == (("elstar",), {"gala": 0.8889, "elstar": 0.1111})
    coverage = measure_coverage(varieties, features, features[[*range(16), 20, 21, 22]])
    assert coverage.describe().endswith("rare, as a fraction of their share: elstar 0.32")


def test_evaluate_is_refused_before_work_when_a_curve_is_damaged(run, tmp_path):
    (run / "kid.csv").write_text("step,kid_x1000\n2,5\n")
    sentence = "Line 1 of .*/run/kid.csv is not step,kid_x1000,std,minutes; restore the file from a backup."
    with pytest.raises(TrainingError, match=f"^{sentence}$"):
        evaluate_in_process(run, tmp_path / "nowhere", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "out", "sentence"),
    [
        ("1", "out", r"/1 is damaged, or `export` did not write it; name another version\.$"),
        ("photos", "out", "photos has neither saved_model.pb nor config.json; name a version of a model, such as"),
        ("run", "out", "^24 images and photos are too few to compare; provide at least 50"),
        ("run", "photos/0.png", "^--out is '.*/0.png', but .*/0.png is not a folder; set --out"),
    ],
)
def test_evaluate_is_refused_when_an_argument_is_wrong(small_model, small_run, folder, model, out, sentence):
    version = shutil.copytree(small_model / "1", folder.parent / "1")
    (version / "variables" / "variables.index").unlink()
    (folder.parent / "run").symlink_to(small_run)
    for seed in range(24):
        draw_photo(seed).save(folder / f"{seed}.png")
    with pytest.raises(TrainingError, match=sentence):
        evaluate_in_process(folder.parent / model, folder, out=folder.parent / out)
