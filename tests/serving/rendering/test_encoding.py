import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from serving.rendering.encoding import RENDERER_VERSION, encode, encode_animation, resize

FACTS = {"Model": "apple", "Picture": "/generate?seed=42"}


@pytest.fixture
def pixels():
    return (np.arange(40 * 56 * 3).reshape(40, 56, 3) * 7 % 251).astype(np.uint8)


def decoded(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_a_png_names_its_model_in_any_script(pixels):
    with Image.open(io.BytesIO(encode(pixels, "png", {"Model": "林檎"}))) as image:
        assert image.info == {"Model": "林檎"}


def test_a_jpeg_of_a_smooth_picture_is_within_a_few_levels():
    smooth = np.full((64, 64, 3), (180, 40, 30), np.uint8)
    assert np.abs(decoded(encode(smooth, "jpeg", {})).astype(int) - smooth).max() <= 3


def test_the_layout_of_the_array_in_memory_does_not_matter(pixels):
    assert encode(np.asfortranarray(pixels), "png", FACTS) == encode(pixels, "png", FACTS)


def test_the_bytes_are_those_of_this_renderer_version(pixels):
    """If this fails after an upgrade, raise RENDERER_VERSION: every picture has other bytes now."""
    digests = {3: "5a0444215206f9490bb9f86448dcd8149c53b605f18d0c30749160a83472f03a"}
    frames = [pixels, np.flip(pixels, 0), np.flip(pixels, 1)]
    all_paths = [encode(resize(pixels, 128), name, FACTS) for name in ("png", "webp", "jpeg")]
    all_paths += [encode_animation(frames, name) for name in ("webp", "gif")]
    assert hashlib.sha256(b"".join(all_paths)).hexdigest() == digests[RENDERER_VERSION]
