"""`python -m training samples`."""

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main


def test_samples_are_a_grid_a_morph_and_single_images(run, capsys):
    assert main(["samples", str(run), "--seeds", f"3,7-9,{2**63 - 1}"]) == 0
    shapes = {path.stem: np.asarray(Image.open(path)).shape for path in (run / "samples").iterdir()}
    single_images = dict.fromkeys(("3", "7", "8", "9", str(2**63 - 1)), (32, 32, 3))
    assert shapes == {"grid": (64, 96, 3), "morph": (32, 256, 3), **single_images}
    assert capsys.readouterr().out == f"Wrote {run}/samples. Open {run}/samples/grid.png.\n"
    assert main(["samples", str(run), "--seeds", "3"]) == 0
    assert not (run / "samples" / "morph.png").exists()  # it would show other seeds than the grid


@pytest.mark.parametrize("seeds", ["", "x", "7-3", "1,,2", "-1", "0-1024", "9" * 19, "0-99999999999999999999", "１"])
def test_samples_are_refused_when_seeds_are_wrong(small_run, capsys, seeds):
    assert main(["samples", str(small_run), f"--seeds={seeds}"]) == 2
    assert f"samples: --seeds is {seeds!r}; set it to at most 1,024 seeds from 0 to" in capsys.readouterr().err
    assert not (small_run / "samples").exists()


def test_samples_are_refused_with_the_name_of_the_file_that_cannot_be_written(run, capsys):
    (run / "samples" / "grid.png").mkdir(parents=True)
    assert main(["samples", str(run), "--seeds", "3"]) == 2
    sentence = f"{run}/samples/grid.png: Is a directory; remove the cause, then run the command again."
    assert capsys.readouterr().err == f"python -m training samples: {sentence}\n"
