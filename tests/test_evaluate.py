"""`python -m training evaluate`, and the network it judges with."""

import json
import pickle
import subprocess

import numpy as np
import pytest

from tests.conftest import ROOT, command, draw_photo
from training.features import FEATURES, build_extractor, read_weights


def evaluate(run, photos, *flags: object) -> subprocess.CompletedProcess[str]:
    words = command("training", "evaluate", run, "--photos", photos, *flags)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_features_are_those_of_another_implementation():
    """The expected numbers come from the same weights run by ONNX Runtime, with a reader of their own."""
    y, x = np.mgrid[:64, :64]
    picture = np.stack([x * 4, y * 4, (x * y) % 256], axis=-1).astype(np.uint8)
    (found,) = build_extractor()(picture[None])
    assert found.shape == (FEATURES,)
    assert np.argsort(found)[-5:].tolist() == [403, 949, 917, 113, 897]
    np.testing.assert_allclose(np.sort(found)[-5:], [3.3736653, 3.5613675, 3.564218, 4.16533, 4.24896], rtol=1e-4)
    assert found.mean() == pytest.approx(0.220241, rel=1e-4)


def test_a_file_of_weights_cannot_run_code(tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(subprocess.Popen))
    with pytest.raises(pickle.UnpicklingError, match=r"subprocess\.Popen has no place"):
        read_weights(tmp_path / "weights.pth")


def test_a_run_is_compared_with_photos_and_the_figures_are_kept(small_run, tmp_path):
    for seed in range(60):
        draw_photo(seed).save(tmp_path / f"{seed}.png")
    written = small_run / "evaluation.json"
    try:
        done = evaluate(small_run, tmp_path, "--count", 50)
        assert done.returncode == 0, done.stderr
        figures = json.loads(written.read_text(encoding="utf-8"))
    finally:
        written.unlink(missing_ok=True)
    assert figures["pictures of each kind"] == 50
    assert figures["KID x1000"] > 100  # four batches old: noise, not fruit
    assert f"FID: {figures['FID']}" in done.stdout


def test_too_few_photos_are_one_sentence(small_run, tmp_path):
    for seed in range(24):
        draw_photo(seed).save(tmp_path / f"{seed}.png")
    done = evaluate(small_run, tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("24 pictures of each kind are too few to compare: at least 50 are needed.\n")
