"""Pictures of pages with at most 256 colours: a third of the bytes, and no difference to be seen.

What a page is drawn in is few colours and their mixtures at the edges of letters.
"""

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST_COLOURS: Final = 256
_STEP: Final = 4
"""Colours that differ by less are one."""
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def palette_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG with a palette (W3C, Portable Network Graphics, colour type 3).

    Args:
        pixels: rows of pixels of red, green and blue.
    """
    height, width, _ = pixels.shape
    rounded = np.minimum((pixels.astype(np.int32) + _STEP // 2) // _STEP * _STEP, 255)
    packed = (rounded[..., 0] << 16) | (rounded[..., 1] << 8) | rounded[..., 2]
    colours, place, count = np.unique(packed, return_inverse=True, return_counts=True)
    order = np.argsort(-count, kind="stable")
    kept = colours[order[:MOST_COLOURS]]
    parts = [(colour[:, None] >> np.array([16, 8, 0])) & 255 for colour in (colours, kept)]
    squares = ((parts[0][:, None, :] - parts[1][None, :, :]) ** 2).sum(axis=2)
    nearest = squares.argmin(axis=1).astype(np.uint8)
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = nearest[place.reshape(height, width)]
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", parts[1].astype(np.uint8).tobytes()),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
