"""The verdict on copies, from distances to the nearest training photo."""

import numpy as np
import pytest

from training.evaluate.copies import assess_distances

FAR, NEAR = np.linspace(10, 20, 50, dtype=np.float32), np.linspace(1, 2, 50, dtype=np.float32)
ALL_CLOSE = "The images are closer to the training photos than other photos are."
SOME_CLOSE = "Some images look like copies."
UNCERTAIN = "The images may be copies: chance may explain that 6 other photos are farther away."
VERDICTS = {
    "as far": (FAR, FAR, "good", "No sign of copying."),
    "closer": (NEAR, FAR, "bad", ALL_CLOSE),
    "a little closer, 6 others": (FAR[10:30], FAR[5::8], "unknown", UNCERTAIN),
    "some": (np.r_[NEAR[:15], FAR[-35:]], FAR, "bad", SOME_CLOSE),
    "a few": (np.r_[NEAR[:5], FAR[-45:]], FAR, "good", "No sign of copying."),
    "some, 5 others": (np.r_[NEAR[:15], FAR[-35:]], FAR[::10], "good", "No sign of copying."),
    "more, 5 others": (np.r_[NEAR[:20], FAR[-30:]], FAR[::10], "bad", SOME_CLOSE),
}


@pytest.mark.parametrize(("generated", "others", "level", "headline"), VERDICTS.values(), ids=VERDICTS)
def test_verdict_is_bad_when_images_are_closer_than_other_photos(generated, others, level, headline):
    verdict = assess_distances(generated, others)
    assert (verdict.level, verdict.headline) == (level, headline)


def test_verdict_explains_its_numbers():
    assert assess_distances(np.r_[NEAR[:15], FAR[-35:]], FAR).explanation == (
        "Typical distance to the nearest training photo in pixels at 32x32 (0 is identical): generated 15, "
        "other photos 15; 30.0 % of the images are closer than the closest 5 % of other photos (10.5)."
    )
