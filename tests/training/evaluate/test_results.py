"""The verdict on copies, from distances to the nearest photo trained on."""

import numpy as np
import pytest

from training.evaluate.results import judge_copies

FAR, NEAR = np.linspace(10, 20, 50, dtype=np.float32), np.linspace(1, 2, 50, dtype=np.float32)
NEWLY = "The pictures come closer to the photos trained on than new photos do, as copies would."
PARTLY = "Part of the pictures look like copies."


@pytest.mark.parametrize(
    ("pictures", "held_out", "level", "headline"),
    [
        (FAR, FAR, "good", "No sign of copying."),
        (NEAR, FAR, "bad", NEWLY),
        (np.r_[NEAR[:15], FAR[-35:]], FAR, "bad", PARTLY),
        (np.r_[NEAR[:5], FAR[-45:]], FAR, "good", "No sign of copying."),
        (np.r_[NEAR[:15], FAR[-35:]], FAR[::10], "good", "No sign of copying."),
        (np.r_[NEAR[:20], FAR[-30:]], FAR[::10], "bad", PARTLY),
        (NEAR, None, "unknown", "Whether it copies is not known."),
    ],
    ids=["as far", "closer", "some", "a few", "some, 5 held out", "more, 5 held out", "none held out"],
)
def test_pictures_closer_than_new_photos_are_called_copies(pictures, held_out, level, headline):
    verdict = judge_copies(pictures, held_out)
    assert (verdict.level, verdict.headline) == (level, headline)


def test_the_verdict_tells_the_numbers_that_it_follows_from():
    assert judge_copies(np.r_[NEAR[:15], FAR[-35:]], FAR).explanation == (
        "Half of 50 pictures lie within 15.0/255 of a photo trained on (RMS at 32x32), half of 50 photos held out "
        "within 15.0; 30.0 % of the pictures are closer than the closest 5 % of those photos (10.5)."
    )
    assert judge_copies(NEAR, None).explanation == (
        "Half of 50 pictures lie within 1.5/255 of a photo trained on (RMS at 32x32); no photo was held out that would "
        "say how close a new one comes."
    )
