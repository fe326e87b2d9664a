"""PNG images, gray or in color, without a library."""

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["encode", "grid"]


def grid(images: NDArray[np.uint8], *, zoom: int = 8, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange images in a grid with dark gaps between them.

    The grid is about as wide as high, or somewhat wider if its rows are all full then.

    Parameters
    ----------
    images
        Of shape (count, height, width), or (count, height, width, 3).
    zoom
        Pixels in height and width that a pixel becomes.
    gap
        Pixels between images.
    """
    count = len(images)
    root = int(np.ceil(np.sqrt(count)))
    columns = next((n for n in range(root, root * 3 // 2) if count % n == 0), root)
    rows = -(-count // columns)
    big = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width = big.shape[1] + gap, big.shape[2] + gap
    shape = (rows * height - gap, columns * width - gap, *images.shape[3:])
    result = np.full(shape, 64, np.uint8)
    for i, image in enumerate(big):
        top, left = i // columns * height, i % columns * width
        result[top : top + image.shape[0], left : left + image.shape[1]] = image
    return result


def encode(pixels: NDArray[Any]) -> bytes:
    """Make a PNG file of 8-bit values: gray (height, width), or color (height, width, 3)."""
    pixels = np.ascontiguousarray(pixels, np.uint8)
    height, width = pixels.shape[:2]
    kind = 0 if pixels.ndim == 2 else 2

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    # Every line begins with its filter: none.
    lines = np.insert(pixels.reshape(height, -1), 0, 0, axis=1).tobytes()
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
