"""The verdict on copies, from distances to the nearest photo trained on."""

import numpy as np
import pytest

from training.evaluate.results import judge_copies, worse

FAR, NEAR = np.linspace(10, 20, 50, dtype=np.float32), np.linspace(1, 2, 50, dtype=np.float32)
NEWLY = "The images are closer to the training photos than unseen photos are."
PARTLY = "Some images look like copies."


@pytest.mark.parametrize(
    ("pictures", "held_out", "level", "headline"),
    [
        (FAR, FAR, "good", "No sign of copying."),
        (NEAR, FAR, "bad", NEWLY),
        (np.r_[NEAR[:15], FAR[-35:]], FAR, "bad", PARTLY),
        (np.r_[NEAR[:5], FAR[-45:]], FAR, "good", "No sign of copying."),
        (np.r_[NEAR[:15], FAR[-35:]], FAR[::10], "good", "No sign of copying."),
        (np.r_[NEAR[:20], FAR[-30:]], FAR[::10], "bad", PARTLY),
        (NEAR, None, "unknown", "Not checked for copies."),
    ],
    ids=["as far", "closer", "some", "a few", "some, 5 held out", "more, 5 held out", "none held out"],
)
def test_pictures_closer_than_new_photos_are_called_copies(pictures, held_out, level, headline):
    verdict = judge_copies(pictures, held_out)
    assert (verdict.level, verdict.headline) == (level, headline)


def test_the_verdict_gives_the_numbers_that_it_follows_from():
    assert judge_copies(np.r_[NEAR[:15], FAR[-35:]], FAR).explanation == (
        "Typical distance to the nearest training photo in pixels at 32x32 (0 is identical): generated 15, "
        "unseen photos 15; 30.0 % of the images are closer than the closest 5 % of unseen photos (10.5)."
    )
    assert judge_copies(NEAR, None, space="features").explanation == (
        "Typical distance to the nearest training photo in features (0 is identical): generated 1.5; "
        "no photo was held out to compare with."
    )


def test_the_worse_of_two_verdicts_counts_and_both_are_explained():
    near, far = judge_copies(NEAR, FAR), judge_copies(FAR, FAR, space="features")
    for verdict in (worse(near, far), worse(far, near)):
        assert (verdict.level, verdict.headline) == ("bad", near.headline)
        assert near.explanation in verdict.explanation
        assert far.explanation in verdict.explanation
