"""Units' ids: what they may be, how they are stored, and how an erased one is known again.

A project stores its units as they are sent, or only as keyed hashes of them. An erased unit is kept
as a keyed hash either way. The key is a secret of the project, without which nobody can try out
which id a hash stands for; it is neither shown nor logged.
"""

import hashlib
import re
from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Meta

Storage: TypeAlias = Literal["plain", "hashed"]
"""How units are stored: as they are sent, or keyed-hashed."""
UnitId: TypeAlias = Annotated[
    str, Meta(min_length=1, description="a unit's id: 1 to 256 bytes of UTF-8")
]

STORAGES: Final[tuple[Storage, ...]] = get_args(Storage)
MAX_UNIT_BYTES: Final = 256
MAX_UNITS: Final = 8
"""How many units, each of another type, one request may name."""
KEY_BYTES: Final = 32
SHIPPING_LOCK: Final = 0x7475726E6F757403
"""An advisory lock of Postgres: those who bring records in hold it shared, an erasure holds it
alone. So what is in the tables, and what is yet to come in, is never in between."""


class UnitKey:
    """The secret key of a project. It has no text form, so that none gets into a log."""

    __slots__ = ("_erased", "_secret", "_stored")

    def __init__(self, secret: bytes) -> None:
        """`secret` is 32 random bytes."""
        self._secret = secret
        # The key is taken in once; each hash goes on from a copy, which takes a fifth less time.
        self._stored = hashlib.blake2b(key=secret, person=b"turnout.unit", digest_size=16)
        self._erased = hashlib.blake2b(key=secret, person=b"turnout.erased", digest_size=32)

    def hashed(self, unit_type: str, unit: str) -> str:
        """What is stored of a unit where units are hashed: 32 hexadecimal digits."""
        digest = self._stored.copy()
        digest.update(f"{unit_type}\0{unit}".encode())
        return digest.hexdigest()

    def tombstone(self, unit_type: str, stored: str) -> bytes:
        """What an erased unit is known by, made of what was stored of it."""
        digest = self._erased.copy()
        digest.update(f"{unit_type}\0{stored}".encode())
        return digest.digest()

    def secret(self) -> bytes:
        """The secret itself, for a file that only its owner can read; for nothing that is shown."""
        return self._secret


def names_unit(text: str, unit: str) -> bool:
    """Whether a text has the id of a unit in it, as a word of its own."""
    return _word(unit).search(text) is not None


def without_unit(text: str, unit: str) -> str:
    """A text that is kept where units are not."""
    return _word(unit).sub("[unit]", text)


def _word(unit: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(unit)}(?!\w)")


def unit_problem(unit: str) -> str | None:
    """What is wrong with the id of a unit, or None."""
    if unit.isascii() and 1 <= len(unit) <= MAX_UNIT_BYTES and "\0" not in unit:
        return None  # as nearly all are
    size = len(unit.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= MAX_UNIT_BYTES:
        return f"must have 1 to {MAX_UNIT_BYTES} bytes of UTF-8, has {size}"
    if "\0" in unit:
        return "must not contain U+0000"
    return None
