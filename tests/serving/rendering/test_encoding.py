import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from serving.rendering.encoding import RENDERER_VERSION, arrange, encode, encode_animation, resize

FACTS = {"Model": "apple", "Picture": "/generate?seed=42"}


@pytest.fixture
def pixels():
    return (np.arange(40 * 56 * 3).reshape(40, 56, 3) * 7 % 251).astype(np.uint8)


def decoded(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize("file_format", ["png", "webp"])
def test_png_and_webp_hold_the_very_pixels(pixels, file_format):
    assert np.array_equal(decoded(encode(pixels, file_format, FACTS)), pixels)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (9, 1, 3), (37, 101, 3)])
def test_a_png_of_any_shape_holds_the_very_pixels(shape):
    noise = np.random.default_rng(7).integers(0, 256, shape, np.uint8)
    assert np.array_equal(decoded(encode(noise, "png", {})), noise)


def test_a_png_names_its_model_in_any_script(pixels):
    with Image.open(io.BytesIO(encode(pixels, "png", {"Model": "林檎"}))) as image:
        assert image.info == {"Model": "林檎"}


def test_a_jpeg_of_a_smooth_picture_is_within_a_few_levels():
    smooth = np.full((64, 64, 3), (180, 40, 30), np.uint8)
    assert np.abs(decoded(encode(smooth, "jpeg", {})).astype(int) - smooth).max() <= 3


def test_a_png_carries_its_facts_and_nothing_else(pixels):
    with Image.open(io.BytesIO(encode(pixels, "png", FACTS))) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", FACTS)


def test_the_layout_of_the_array_in_memory_does_not_matter(pixels):
    assert encode(np.asfortranarray(pixels), "png", FACTS) == encode(pixels, "png", FACTS)


def test_the_bytes_are_those_of_this_renderer_version(pixels):
    """If this fails after an upgrade, raise RENDERER_VERSION: every picture has other bytes now."""
    digests = {3: "5a0444215206f9490bb9f86448dcd8149c53b605f18d0c30749160a83472f03a"}
    frames = [pixels, np.flip(pixels, 0), np.flip(pixels, 1)]
    all_paths = [encode(resize(pixels, 128), name, FACTS) for name in ("png", "webp", "jpeg")]
    all_paths += [encode_animation(frames, name) for name in ("webp", "gif")]
    assert hashlib.sha256(b"".join(all_paths)).hexdigest() == digests[RENDERER_VERSION]


@pytest.mark.parametrize(("size", "shape"), [(56, (40, 56)), (112, (80, 112)), (28, (20, 28)), (16, (11, 16))])
def test_size_is_the_longer_side(pixels, size, shape):
    assert resize(pixels, size).shape == (*shape, 3)


def test_the_models_own_size_is_left_untouched(pixels):
    assert resize(pixels, 56) is pixels


def test_tiles_stand_row_by_row_and_the_last_row_is_filled_with_white(pixels):
    tiles = [pixels, pixels // 2, pixels // 3]
    sheet = arrange(tiles, 2)
    assert sheet.shape == (80, 112, 3)
    assert np.array_equal(sheet[:40, 56:], tiles[1])
    assert np.array_equal(sheet[40:, :56], tiles[2])
    assert (sheet[40:, 56:] == 255).all()


@pytest.mark.parametrize("file_format", ["webp", "gif"])
def test_an_animation_runs_there_and_back_for_ever(pixels, file_format):
    frames = [pixels // divisor for divisor in (1, 2, 3)]
    with Image.open(io.BytesIO(encode_animation(frames, file_format))) as image:
        assert (image.n_frames, image.info["loop"]) == (4, 0)
        if file_format == "webp":
            for place, frame in enumerate([frames[0], frames[1], frames[2], frames[1]]):
                image.seek(place)
                assert np.array_equal(np.asarray(image.convert("RGB")), frame)
