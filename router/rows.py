"""Records as rows of Postgres' binary COPY.

They are made byte by byte, for that takes a third of the time in which asyncpg encodes tuples. What
many rows have in common comes first in them and is made once.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec

from router.records import ExposureRecord, OutcomeRecord, RecordId

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_NULL: Final = b"\xff\xff\xff\xff"
_JSONB_VERSION: Final = b"\1"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NUL: Final = b"\\u0000"
_ROWS_AT_ONCE: Final = 500

# Every value follows its length in bytes.
_LENGTH = struct.Struct("!i")
_FLOAT = struct.Struct("!id")
_TIME = struct.Struct("!iq")
_TIMES = struct.Struct("!iqiq")
_TIMES_AND_ORDINAL = struct.Struct("!iqiqii")
_SEGMENT = struct.Struct("!hiq")
_EXPERIMENT = struct.Struct("!iqiiii")
_ID_LENGTH: Final = _LENGTH.pack(16)
_ID_ROW: Final = struct.pack("!h", 2) + _ID_LENGTH


class Table(msgspec.Struct, frozen=True):
    """A table of records, and its columns in the order of our rows, which lack the first."""

    name: str
    columns: tuple[str, ...]


EXPOSURES: Final = Table(
    "exposure",
    (
        "segment",
        "project",
        "variant",
        "unit_type",
        "experiment",
        "run",
        "epoch",
        "received_at",
        "at",
        "id",
        "unit",
        "attributes",
    ),
)
OUTCOMES: Final = Table(
    "outcome",
    (
        "segment",
        "project",
        "event",
        "unit_type",
        "received_at",
        "at",
        "ordinal",
        "id",
        "value",
        "unit",
        "attributes",
    ),
)
OUTCOME_IDS: Final = Table("outcome_id", ("id", "received_at"))


def exposure_row(record: ExposureRecord) -> bytes:
    """The row of an exposure.

    Raises:
        ValueError, struct.error: if Postgres would refuse it.
    """
    attributes = record.attributes
    return b"".join(
        (
            _arm(
                record.project,
                record.variant,
                record.unit_type,
                record.experiment,
                record.run,
                record.epoch,
            ),
            _times(record.received_at, record.at),
            _ID_LENGTH,
            record.id,
            _text(record.unit),
            _NULL if attributes is None else _jsonb(attributes),
        )
    )


def outcome_rows(ordinal: int, record: OutcomeRecord) -> list[bytes]:
    """The rows of an outcome: one for each unit.

    Raises:
        ValueError, struct.error: if Postgres would refuse it, or folding choke on it.
    """
    if not record.units:
        raise ValueError("it names no unit")
    if record.value is not None and not math.isfinite(record.value):
        raise ValueError("its value is not finite")
    received_at = _microseconds(record.received_at)
    at = received_at if record.at == record.received_at else _microseconds(record.at)
    middle = (
        _TIMES_AND_ORDINAL.pack(8, received_at, 8, at, 4, ordinal)
        + (_NULL if record.id is None else _ID_LENGTH + record.id)
        + (_NULL if record.value is None else _FLOAT.pack(8, record.value))
    )
    end = _jsonb(record.attributes)
    return [
        _texts(record.project, record.event, unit_type) + middle + _text(unit) + end
        for unit_type, unit in record.units
    ]


def copy_rows(segment: int, table: Table, rows: Sequence[bytes]) -> Iterator[bytes]:
    """What a binary COPY of a segment's rows reads, in pieces."""
    start = _SEGMENT.pack(len(table.columns), 8, segment)
    yield _SIGNATURE
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield start + start.join(rows[first : first + _ROWS_AT_ONCE])
    yield _END


def copy_ids(ids: Sequence[RecordId], received_at: datetime) -> Iterator[bytes]:
    """What a binary COPY of ids that came at one time reads, in pieces."""
    end = _TIME.pack(8, _microseconds(received_at))
    between = end + _ID_ROW
    yield _SIGNATURE
    for first in range(0, len(ids), _ROWS_AT_ONCE):
        yield _ID_ROW + between.join(ids[first : first + _ROWS_AT_ONCE]) + end
    yield _END


@lru_cache(maxsize=4_096)
def _arm(
    project: str, variant: str, unit_type: str, experiment: int, run: int, epoch: int
) -> bytes:
    numbers = _EXPERIMENT.pack(8, experiment, 4, run, 4, epoch)
    return _texts(project, variant, unit_type) + numbers


@lru_cache(maxsize=16)
def _times(received_at: datetime, at: datetime) -> bytes:
    """Those of what came in one turn of the event loop are the same."""
    return _TIMES.pack(8, _microseconds(received_at), 8, _microseconds(at))


def _microseconds(at: datetime) -> int:
    if at.tzinfo is None:
        raise ValueError("a time has no offset")
    return (at - _EPOCH) // _MICROSECOND


def _text(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a text contains U+0000, which Postgres cannot store")
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


@lru_cache(maxsize=4_096)
def _texts(*texts: str) -> bytes:
    return b"".join(map(_text, texts))


def _jsonb(value: dict[str, Any] | None) -> bytes:
    if value is None:
        return _NULL
    data = _JSONB_VERSION + msgspec.json.encode(value)
    # What is found may be an escaped backslash before the letters.
    if _NUL in data and _holds_nul(value):
        raise ValueError("a text contains U+0000, which Postgres cannot store")
    return _LENGTH.pack(len(data)) + data


def _holds_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
        case list():
            return any(map(_holds_nul, value))
    return False
