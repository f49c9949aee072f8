"""From a salt and a unit to one of the 10,000 slots (DESIGN 5).

The hash is the one of flagd's `fractional` operation on the string `salt:unit`: murmur3_x86_32 of
that string as CBOR writes it, so that a local flagd evaluator and our router agree unit by unit.
"""

from collections.abc import Callable

import mmh3

from experiments.model import SLOTS

_TEXT = 0x60  # CBOR major type 3, a text string, in the upper three bits of the first byte


def head(length: int) -> bytes:
    """The head of a CBOR text string of so many bytes, in its shortest form (RFC 8949, 4.2.1)."""
    if length < 24:
        return bytes((_TEXT | length,))
    for code, size in ((24, 1), (25, 2), (26, 4)):
        if length < 1 << (8 * size):
            return bytes((_TEXT | code,)) + length.to_bytes(size, "big")
    return bytes((_TEXT | 27,)) + length.to_bytes(8, "big")


# A unit has at most 256 bytes and a salt 80, so this covers all that a router meets.
_HEADS = tuple(head(length) for length in range(512))


def slotter(salt: str) -> Callable[[str], int]:
    """`slot` for one salt, with what depends on the salt alone made once.

    It takes two thirds of the time of `slot`, and an experiment asks it for every request.
    """
    prefix = f"{salt}:".encode()
    heads, known, uintdigest = _HEADS, len(_HEADS), mmh3.mmh3_32_uintdigest

    def slot_of(unit: str) -> int:
        text = prefix + unit.encode()
        length = len(text)
        start = heads[length] if length < known else head(length)
        return (uintdigest(start + text) * SLOTS) >> 32

    return slot_of


def slot(salt: str, unit: str) -> int:
    """The slot of a unit under a salt: 0 to 9,999, the same in every process and for ever."""
    return slotter(salt)(unit)
