"""The one place where pictures are resized, put together and encoded: every path that hands one out comes here."""

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Names the bytes that equal pixels become. Raise it whenever they change: with the settings below, or with the Pillow
# that the lock pins. The wheels bring their own compressor (Pillow 13.0.0: PIL.features.check_feature("zlib_ng") is
# True, version_feature says 2.3.3), a Pillow built from source takes the system's zlib, and the two don't write the
# same bytes for the same pixels. A test pins the digests. 2: pictures say in text chunks what they are.
RENDERER_VERSION = 2

MIMETYPES = MappingProxyType({"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "gif": "image/gif"})

# A photo of 256 x 256: level 4 gives 48 kB in 5 ms, 6 gives 46 kB in 13 ms, 9 gives 43 kB in 114 ms.
PNG_LEVEL = 4
# WebP without loss. A sheet of 640 x 640 in 1.2 times the time of its PNG; the default, quality 80 and method 4, takes
# 6 times as long for 6 % fewer bytes.
WEBP = MappingProxyType({"lossless": True, "quality": 20, "method": 1})
JPEG = MappingProxyType({"quality": 90, "subsampling": 0})  # the one format with loss: no colour at half the resolution
FRAME_MS = 80

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], sRGB


def resize(pixels: Pixels, size: int) -> Pixels:
    """Return `pixels` with `size` for the longer side, by Lanczos's filter (a = 3), up and down."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer == size:
        return pixels
    target = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.LANCZOS))


def arrange(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Return `tiles`, all of one size, in rows of `columns` without gaps; white where the last row has none."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    return sheet


def encode(pixels: Pixels, file_format: str, facts: Mapping[str, str]) -> bytes:
    """Return a still picture as "png", "webp" or "jpeg"; a PNG carries `facts` as text chunks, in their order.

    Equal pixels and facts give equal bytes: no time is written. PNG and WebP hold the very pixels.
    """
    image, encoded = Image.fromarray(pixels), io.BytesIO()
    match file_format:
        case "png":
            chunks = PngInfo()
            for name, text in facts.items():
                chunks.add_text(name, text)
            image.save(encoded, "PNG", compress_level=PNG_LEVEL, pnginfo=chunks)
        case "webp":
            image.save(encoded, "WEBP", **WEBP)
        case "jpeg":
            image.save(encoded, "JPEG", **JPEG)
        case _:
            raise ValueError(f"{file_format!r} is not a format of stills.")
    return encoded.getvalue()


def encode_animation(frames: Sequence[Pixels], file_format: str) -> bytes:
    """Return `frames` as "webp" (the very pixels) or "gif" (256 colours a frame), FRAME_MS each, for ever.

    They run there and back, so that the end meets the beginning.
    """
    images = [Image.fromarray(frame) for frame in (*frames, *frames[-2:0:-1])]
    options: Mapping[str, Any] = WEBP
    if file_format == "gif":
        # Pillow's own choice, the median cut, takes 80 times as long: 5 s for 30 frames of 383 x 383.
        images = [image.quantize(256, Image.Quantize.FASTOCTREE) for image in images]
        options = {"disposal": 1, "optimize": False}
    encoded = io.BytesIO()
    images[0].save(encoded, file_format, save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0, **options)
    return encoded.getvalue()
