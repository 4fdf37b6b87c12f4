"""Resizing, arranging and encoding: the only module that makes image bytes."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import deflate
import numpy as np
import numpy.typing as npt
from PIL import Image

# Version of encoders' settings and text chunks, pinned by a test. Raise it when equal pixels get other bytes.
RENDERER_VERSION = 4

MIMETYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "gif": "image/gif"}

# libdeflate's own default. An apple of 64 x 64 is 6,090 bytes after 0.15 ms (Pillow's level 4: 5,960 after 0.40), a
# photo of 256 x 256 is 41 kB after 2.1 ms (47 kB after 4.6). Level 1: 46 kB after 0.8 ms; 8: 40 kB after 8.9 ms.
PNG_LEVEL = 6
SUB, UP = 1, 2  # PNG filters: differences to the left, or upwards
# WebP without loss. A sheet of 640 x 640 in 1.2 times the time of its PNG; the default, quality 80 and method 4, takes
# 6 times as long for 6 % fewer bytes.
WEBP = {"lossless": True, "quality": 20, "method": 1}
JPEG = {"quality": 90, "subsampling": 0}  # lossy; full resolution for colour
FRAME_MS = 80

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], sRGB


def resize(pixels: Pixels, size: int) -> Pixels:
    """Return `pixels` with `size` as the longer side, by Lanczos (a=3)."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer == size:
        return pixels
    target = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.LANCZOS))


def arrange(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Return `tiles` of one size in rows of `columns`, padded with white."""
    if len(tiles) == columns == 1:
        return tiles[0]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    return sheet


def encode(pixels: Pixels, file_format: str, facts: Mapping[str, str]) -> bytes:
    """Return an image as "png", "webp" or "jpeg".

    A PNG has `facts` as text chunks. Equal pixels and facts give equal bytes. PNG and WebP are lossless.
    """
    if file_format == "png":
        return _png(pixels, facts)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, file_format, **{"webp": WEBP, "jpeg": JPEG}[file_format])
    return encoded.getvalue()


def _png(pixels: Pixels, facts: Mapping[str, str]) -> bytes:
    """Return a PNG (https://www.w3.org/TR/png-3/) with 8 bits a channel, without interlacing."""
    height, width, _ = pixels.shape
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [_text_chunk(name, text) for name, text in facts.items()]
    chunks += [(b"IDAT", bytes(deflate.zlib_compress(_filtered(pixels), PNG_LEVEL))), (b"IEND", b"")]
    parts = [b"\x89PNG\r\n\x1a\n"]  # the signature
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def _filtered(pixels: Pixels) -> Pixels:
    """Return uint8[H, 1 + 3 W]: rows as differences, left or upwards.

    The heuristic of section 12.7 of the standard with two of its five filters. With all five, a photo of 256 x 256
    takes 3.6 instead of 0.1 ms and is 9 % larger.
    """
    height, width, _ = pixels.shape
    both = np.empty((2, height, 1 + 3 * width), np.uint8)
    both[0, :, 0], both[1, :, 0] = SUB, UP
    left, up = both[:, :, 1:].reshape(2, height, width, 3)
    left[:, 0], up[0] = pixels[:, 0], pixels[0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=left[:, 1:])  # modulo 256, as the standard wants
    np.subtract(pixels[1:], pixels[:-1], out=up[1:])
    sizes = np.abs(both.view(np.int8)).view(np.uint8).sum(axis=2, dtype=np.uint32)
    return np.ascontiguousarray(both[sizes.argmin(axis=0), np.arange(height)])


def _text_chunk(name: str, text: str) -> tuple[bytes, bytes]:
    try:
        return b"tEXt", name.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def encode_animation(frames: Sequence[Pixels], file_format: str) -> bytes:
    """Return `frames`, forwards and back, as an endless "webp" or "gif".

    WebP is lossless; GIF has 256 colours a frame.
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
