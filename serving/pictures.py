"""The one place where pictures are encoded: every path that hands out a picture calls `encode_png`."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

# Names the bytes that equal pixels become. Raise it whenever they change: with the settings below, or with the Pillow
# that the lock pins. The wheels bring their own compressor (Pillow 13.0.0: PIL.features.check_feature("zlib_ng") is
# True, version_feature says 2.3.3), a Pillow built from source takes the system's zlib, and the two don't write the
# same bytes for the same pixels. A test pins one digest.
RENDERER_VERSION = 1

# A photo of 256 x 256: level 4 gives 48 kB in 5 ms, 6 gives 46 kB in 13 ms, 9 gives 43 kB in 114 ms.
COMPRESS_LEVEL = 4


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the sRGB picture `pixels`, uint8[H, W, 3], as PNG.

    Equal pixels give equal bytes: neither time nor metadata is written.
    """
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=COMPRESS_LEVEL)
    return png.getvalue()
