"""From the payloads of a segment to the rows of Postgres. Pure, and slow enough for a thread."""

import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, TypeAlias
from uuid import UUID

import msgspec

from router.records import ExposureRecord, Record, decode

Row: TypeAlias = tuple[object, ...]

EXPOSURE_COLUMNS = (
    "segment",
    "id",
    "project",
    "experiment",
    "run",
    "epoch",
    "variant",
    "unit_type",
    "unit",
    "at",
    "received_at",
    "attributes",
)
OUTCOME_COLUMNS = (
    "segment",
    "ordinal",
    "id",
    "project",
    "event",
    "unit_type",
    "unit",
    "value",
    "at",
    "received_at",
    "attributes",
)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to store: its rows stand or fall together. They lack the first column, `segment`."""

    ordinal: int
    payload: bytes
    rows: list[Row]
    id: UUID | None = None


class Letter(msgspec.Struct, frozen=True):
    """A record that cannot be stored, and why."""

    ordinal: int
    payload: bytes
    reason: str


class Load(msgspec.Struct, frozen=True):
    """What a segment brings."""

    exposures: list[Entry]
    outcomes: list[Entry]
    letters: list[Letter]
    ids: list[tuple[UUID, datetime]]
    """The outcomes' ids, each once, in order: those who take them in one order cannot deadlock."""
    days: list[date]
    """The days (UTC) of receipt, whose partitions must be there."""


def prepare(payloads: Sequence[bytes]) -> Load:
    """Decode a segment's records and make their rows; what has a flaw becomes a letter."""
    exposures: list[Entry] = []
    outcomes: list[Entry] = []
    letters: list[Letter] = []
    ids: dict[UUID, datetime] = {}
    days: set[date] = set()
    for ordinal, payload in enumerate(payloads):
        try:
            record = decode(payload)
            flaw = _flaw(record)
            rows = _rows(ordinal, record) if flaw is None else []
        except Exception as error:  # whatever is wrong with one record must not block the rest
            flaw = f"{type(error).__name__}: {error}"
        if flaw is not None:
            letters.append(Letter(ordinal, payload, flaw))
            continue
        days.add(record.received_at.date())
        if isinstance(record, ExposureRecord):
            exposures.append(Entry(ordinal, payload, rows))
        else:
            if record.id is not None:
                ids.setdefault(record.id, record.received_at)
            outcomes.append(Entry(ordinal, payload, rows, record.id))
    in_order = sorted(ids.items(), key=lambda item: item[0].int)
    return Load(exposures, outcomes, letters, in_order, sorted(days))


def _rows(ordinal: int, record: Record) -> list[Row]:
    attributes = _json(record.attributes)
    if isinstance(record, ExposureRecord):
        return [
            (
                record.id,
                record.project,
                record.experiment,
                record.run,
                record.epoch,
                record.variant,
                record.unit_type,
                record.unit,
                record.at,
                record.received_at,
                attributes,
            )
        ]
    return [
        (
            ordinal,
            record.id,
            record.project,
            record.event,
            unit_type,
            unit,
            record.value,
            record.at,
            record.received_at,
            attributes,
        )
        for unit_type, unit in record.units
    ]


def _json(attributes: dict[str, Any] | None) -> str | None:
    return None if attributes is None else msgspec.json.encode(attributes).decode()


def _flaw(record: Record) -> str | None:
    """Why Postgres would refuse the record, or folding choke on it, as far as it shows."""
    if isinstance(record, ExposureRecord):
        texts: tuple[str, ...] = (record.project, record.variant, record.unit_type, record.unit)
    else:
        if not record.units:
            return "it names no unit"
        if record.value is not None and not math.isfinite(record.value):
            return "its value is not finite"
        texts = (record.project, record.event, *(text for unit in record.units for text in unit))
    if record.at.utcoffset() is None or record.received_at.utcoffset() is None:
        return "a time has no offset"
    if any("\0" in text for text in texts) or _holds_nul(record.attributes):
        return "a text contains U+0000, which Postgres cannot store"
    return None


def _holds_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
        case list():
            return any(map(_holds_nul, value))
    return False
