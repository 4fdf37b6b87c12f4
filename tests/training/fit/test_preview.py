"""`python -m training preview`."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.fit.preview import GAP, LABEL_HEIGHT, PHOTOS, VERSIONS

SIZE = 32
CELL = SIZE + 2  # with its border


def preview(photos, to, *flags: object) -> int:
    return main(["preview", "--photos", str(photos), "--out", str(to), "--image-size", str(SIZE), *map(str, flags)])


def read_cells(sheet) -> np.ndarray:
    """Return a sheet's images, uint8[rows, 1 + VERSIONS, SIZE, SIZE, 3]."""
    with Image.open(sheet) as image:
        pixels = np.asarray(image)[LABEL_HEIGHT:]
    pixels = np.concatenate([pixels[:, :CELL], pixels[:, CELL + GAP :]], axis=1)
    return pixels.reshape(-1, CELL, 1 + VERSIONS, CELL, 3).swapaxes(1, 2)[:, :, 1:-1, 1:-1]


def test_preview_repeats_the_photo_when_augmentation_is_off(photos, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert preview(photos, sheet, "--no-flip", "--translate-probability", 0) == 0
    assert capsys.readouterr().out == f"Wrote {sheet}: 8 photos, each with augmented versions.\n"
    images = read_cells(sheet)
    assert images.shape[:2] == (PHOTOS, 1 + VERSIONS)
    assert (images == images[:, :1]).all()


def test_preview_shows_mirrored_and_shifted_photos(photos, tmp_path):
    preview(photos, tmp_path / "sheet.png", "--translate-fraction", 0.0625, "--translate-probability", 1)
    shifts = []
    for photo, *versions in read_cells(tmp_path / "sheet.png"):
        possible = {}
        for mirrored, y, x in product((False, True), range(5), range(5)):
            padded = np.pad(photo[:, ::-1] if mirrored else photo, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
            possible[padded[y : y + SIZE, x : x + SIZE].tobytes()] = mirrored, y, x
        shifts += [possible[version.tobytes()] for version in versions]
    assert 0.25 < np.mean([mirrored for mirrored, _, _ in shifts]) < 0.75
    assert {y for _, y, _ in shifts} == {x for _, _, x in shifts} == set(range(5))


def test_preview_has_black_shadows_when_they_are_corrected(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (SIZE, SIZE), (50, 50, 50)).save(tmp_path / "photos" / "grey.png")
    preview(tmp_path / "photos", tmp_path / "sheet.png", "--correct-black-level")
    assert not read_cells(tmp_path / "sheet.png").any()


def test_preview_is_equal_when_the_seed_is_equal(photos, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        preview(photos, tmp_path / f"{name}.png", "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("photos_in", "out", "flags", "sentence"),
    [
        ("text/a.txt", "sheet.png", (), "text/a.txt' is not a folder; set --photos to a folder of photos."),
        ("text", "sheet.png", (), "text' has no usable photo: 2 of 3 files are skipped as 'not an image"),
        ("text", "sheet.jpg", (), "not a PNG file; set it to a name such as preview.png."),
        ("text", "3/sheet.png", (), "3 is in a version of a model, which never changes; set it elsewhere."),
        ("text", "text/sheet.png", (), "so its images would become photos; set --out elsewhere."),
        ("text", "sheet.png", ("--translate-fraction", 0.9), "translate_fraction is 0.9; set it to a value from 0.0"),
    ],
)
def test_preview_writes_nothing_when_input_is_bad(tmp_path, capsys, photos_in, out, flags, sentence):
    (tmp_path / "text").mkdir()
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "saved_model.pb").touch()
    for name, text in (("a.txt", "not a photo"), ("b.txt", "nor this"), ("empty.jpg", "")):
        (tmp_path / "text" / name).write_text(text)
    assert preview(tmp_path / photos_in, tmp_path / out, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m training preview: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / out).exists()
