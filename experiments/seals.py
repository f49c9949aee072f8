"""One way to write a value as JSON, so that equal values are equal bytes; and the seal of a
decision, which is made over it.

JSON in Postgres keeps neither the order of an object's keys nor the way in which a number was
written: 1e22 comes back as 10000000000000000000000, and -0.0 as 0.0. Numbers are equal here if they
are equal as numbers.
"""

import hashlib
import json
from typing import Any

import msgspec


def canonical(value: Any) -> bytes:
    """A value as JSON with sorted keys and without spaces; whole numbers without a point.

    Args:
        value: what msgspec can write: Structs, mappings, sequences, numbers, times.

    Raises:
        ValueError: for a number that is not finite, which JSON has not.
    """
    return json.dumps(
        plain(value),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def plain(value: Any) -> Any:
    """A value in dicts, lists, texts, numbers and None; whole numbers as ints, for they have one
    form only."""
    return _plain(msgspec.to_builtins(value, str_keys=True))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def seal(value: Any) -> str:
    """The SHA-256 of the canonical form, in hexadecimal. It tells a number that was changed in the
    database from one that was computed; who changes the seal, too, is not found by it."""
    return hashlib.sha256(canonical(value)).hexdigest()
