"""The format of a journal's file: a header, then frames of (length, checksum, payload).

The checksum starts from the length, so that it guards both. A damaged frame is told apart from the
end of a write that never finished by what comes after it: see `scan`.
"""

import struct
import zlib
from collections.abc import Generator
from datetime import UTC, datetime, timedelta

import msgspec

_MAGIC = b"TOJRNL01"
_HEADER = struct.Struct("<8sq")
_FRAME = struct.Struct("<II")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_PAYLOADS_A_STEP = 250
"""How many payloads are found between pauses, in about a tenth of a millisecond."""

HEADER_SIZE = _HEADER.size
MAX_PAYLOAD = 16 * 1024 * 1024
"""Bytes of one record; a length above it is not believed when a file is read."""


class Scan(msgspec.Struct, frozen=True):
    """What a file holds: whole payloads, damaged ranges between them, the end of what is whole.

    Bytes from `end` on are the beginning of a frame that is not all there.
    """

    payloads: list[bytes]
    damaged: list[tuple[int, int]]
    end: int


def header(begun_at: datetime) -> bytes:
    """The first bytes of a file whose first record came at this time."""
    return _HEADER.pack(_MAGIC, (begun_at - _EPOCH) // _MICROSECOND)


def begun_at(head: bytes) -> datetime | None:
    """The time in a file's header; None if there is none, or it is damaged."""
    if len(head) < HEADER_SIZE:
        return None
    magic, microseconds = _HEADER.unpack_from(head)
    if magic != _MAGIC:
        return None
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return None


def frame(payload: bytes) -> bytes:
    """A payload as it stands in the file.

    Raises:
        ValueError: if it is empty or longer than `MAX_PAYLOAD`.
    """
    length = len(payload)
    if not 0 < length <= MAX_PAYLOAD:
        raise ValueError(f"a record of {length} bytes; a journal takes 1 to {MAX_PAYLOAD}")
    return _FRAME.pack(length, zlib.crc32(payload, length)) + payload


def scan(data: bytes) -> Scan:
    """Read a file's bytes. Nothing is skipped silently: what is not a payload is named.

    Damage is what has a whole frame, or exactly the end of the file, after it. Anything else that
    does not hold is a write that never finished, of which nobody was told that it was done.
    """
    if len(data) < HEADER_SIZE:
        return Scan([], [], 0)
    payloads: list[bytes] = []
    damaged = [] if data.startswith(_MAGIC) else [(0, HEADER_SIZE)]
    at = HEADER_SIZE
    while at < len(data):
        payload = _payload(data, at)
        if payload is not None:
            payloads.append(payload)
            at += _FRAME.size + len(payload)
            continue
        following = _resume(data, at)
        if following is None:
            break
        damaged.append((at, following))
        at = following
    return Scan(payloads, damaged, at)


def intact(data: bytes) -> Generator[None, None, list[bytes] | None]:
    """The payloads of a file without any damage, None of another: that takes `scan`, and longer. It
    pauses now and then, so that others may do something."""
    if len(data) < HEADER_SIZE or not data.startswith(_MAGIC):
        return None
    payloads: list[bytes] = []
    at = HEADER_SIZE
    while at < len(data):
        payload = _payload(data, at)
        if payload is None:
            return None
        payloads.append(payload)
        at += _FRAME.size + len(payload)
        if len(payloads) % _PAYLOADS_A_STEP == 0:
            yield
    return payloads


def _payload(data: bytes, at: int) -> bytes | None:
    """The payload of the frame that begins here, if it holds."""
    start = at + _FRAME.size
    if start > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, at)
    if not 0 < length <= min(MAX_PAYLOAD, len(data) - start):
        return None
    payload = data[start : start + length]
    return payload if zlib.crc32(payload, length) == checksum else None


def _resume(data: bytes, at: int) -> int | None:
    """Where frames hold again after one that does not; None if they never do."""
    if at + _FRAME.size <= len(data):
        # Most likely the length is right, and something behind it is not.
        length, _ = _FRAME.unpack_from(data, at)
        end: int = at + _FRAME.size + length
        if end == len(data) or _payload(data, end) is not None:
            return end
    return next((n for n in range(at + 1, len(data)) if _payload(data, n) is not None), None)
