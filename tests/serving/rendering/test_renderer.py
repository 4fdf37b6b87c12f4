import hashlib

import numpy as np
import pytest

from serving.rendering.encoding import RENDERER_VERSION, encode, encode_animation, resize
from serving.rendering.renderer import slerp

FACTS = {"Model": "apple", "Picture": "/generate?seed=42"}


def test_bytes_are_those_of_this_renderer_version():
    """If this fails after an upgrade, raise RENDERER_VERSION: all bytes differ."""
    pixels = (np.arange(40 * 56 * 3).reshape(40, 56, 3) * 7 % 251).astype(np.uint8)
    digests = {4: "5a0444215206f9490bb9f86448dcd8149c53b605f18d0c30749160a83472f03a"}
    all_paths = [encode(resize(pixels, 128), name, FACTS) for name in ("png", "webp", "jpeg")]
    all_paths += [encode_animation([pixels, np.flip(pixels, 0), np.flip(pixels, 1)], name) for name in ("webp", "gif")]
    assert hashlib.sha256(b"".join(all_paths)).hexdigest() == digests[RENDERER_VERSION]


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_angle_of_slerp_grows_evenly(t):
    start, end, between = (np.array([np.cos(a), np.sin(a)], np.float32) for a in (0.5, 2.5, 0.5 + 2 * t))
    assert slerp(start, end, t) == pytest.approx(between, rel=1e-5)
