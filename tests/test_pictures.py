import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from serving.pictures import RENDERER_VERSION, encode_png


@pytest.fixture
def pixels():
    return (np.arange(40 * 56 * 3).reshape(40, 56, 3) * 7 % 251).astype(np.uint8)


def test_the_png_holds_the_very_pixels(pixels):
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_the_png_holds_nothing_but_the_picture(pixels):
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})


def test_the_layout_of_the_array_in_memory_does_not_matter(pixels):
    assert encode_png(np.asfortranarray(pixels)) == encode_png(pixels)


def test_the_bytes_are_those_of_this_renderer_version(pixels):
    """If this fails after an upgrade of Pillow, raise RENDERER_VERSION: every picture has other bytes now."""
    digests = {1: "c682c0876d839c6835071480b6d4181de789f292d60f6f26d58eebe420add75e"}
    assert hashlib.sha256(encode_png(pixels)).hexdigest() == digests[RENDERER_VERSION]
