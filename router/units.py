"""What of a load may be stored: no unit of a project that hashes them as it was sent, and none that
was erased after its record was received.

Routers hash units themselves as soon as they know that they have to. Until then, and whoever else
writes into a journal, the shipper does it: in Postgres no such unit is ever plain.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, TypeAlias

import msgspec

from experiments.units import UnitKey
from router.load import Entry, Letter, Load
from router.records import (
    ExposureRecord,
    OutcomeRecord,
    Record,
    SuspectRecord,
    decode,
    encode,
    exposure_id,
    units_of,
)
from router.rows import exposure_row, outcome_rows

_RECORDS_A_TURN = 250


class Tombstone(NamedTuple):
    """A unit that was erased, by its keyed hash."""

    project: str
    unit_type: str
    digest: bytes
    erased_at: datetime


class Erased(NamedTuple):
    """The erased units of a type in a project: the project's key, and when each was erased last."""

    key: UnitKey
    last: dict[bytes, datetime]


_Revise: TypeAlias = Callable[[Record], Record | None]


def oldest(load: Load) -> datetime | None:
    """When the first of a load's records was received, also of those that cannot be stored; None if
    none of them says."""
    times = load.received[:1]
    for letter in load.letters:
        with suppress(Exception):  # whatever is wrong with it, that is why it is a letter
            received_at = decode(letter.payload).received_at
            if received_at.tzinfo is not None:
                times.append(received_at)
    return min(times, default=None)


async def settle(
    load: Load,
    hashed: Mapping[str, UnitKey | None],
    tombstones: Collection[Tombstone],
    keys: Mapping[str, UnitKey],
) -> Load:
    """A load as it may be stored. The event loop gets its turns.

    Args:
        hashed: for each project of the load the key that its units are hashed with, or None.
        tombstones: all that are younger than the load's oldest record.
        keys: those that the tombstones were made with, by project.
    """
    to_hash = {project: key for project in load.plain if (key := hashed[project]) is not None}
    erased = _by_type(tombstones, keys, load.projects)
    if not to_hash and not erased:
        return load

    def revise(record: Record) -> Record | None:
        key = to_hash.get(record.project)
        if key is not None and not record.hashed:
            record = hash_units(record, key)
        return without_erased(record, erased)

    return msgspec.structs.replace(
        load,
        exposures=await _entries(load.exposures, revise),
        outcomes=await _entries(load.outcomes, revise),
        letters=[kept for letter in load.letters if (kept := _letter(letter, revise)) is not None],
    )


def hash_units(record: Record, key: UnitKey) -> Record:
    """The record of the same event with its units hashed."""
    if isinstance(record, OutcomeRecord):
        units = tuple((kind, key.hashed(kind, unit)) for kind, unit in record.units)
        return msgspec.structs.replace(record, units=units, hashed=True)
    unit = key.hashed(record.unit_type, record.unit)
    if isinstance(record, SuspectRecord):
        return msgspec.structs.replace(record, unit=unit, hashed=True)
    name = exposure_id(record.experiment, record.run, record.epoch, record.variant, unit)
    return msgspec.structs.replace(record, id=name, unit=unit, hashed=True)


def _by_type(
    tombstones: Collection[Tombstone], keys: Mapping[str, UnitKey], projects: Collection[str]
) -> dict[tuple[str, str], Erased]:
    """What was erased in these projects, by project and unit type."""
    found: dict[tuple[str, str], Erased] = {}
    for project, unit_type, digest, erased_at in tombstones:
        if project in projects:
            erased = found.setdefault((project, unit_type), Erased(keys[project], {}))
            erased.last[digest] = max(erased_at, erased.last.get(digest, erased_at))
    return found


def without_erased(record: Record, erased: Mapping[tuple[str, str], Erased]) -> Record | None:
    """The record without units that were erased when it was received, or later; None where none is
    left.

    Args:
        erased: by project and unit type.
    """
    units = units_of(record)
    left = tuple(unit for unit in units if not _is_erased(record, *unit, erased))
    if len(left) == len(units):
        return record
    if not isinstance(record, OutcomeRecord) or not left:
        return None
    return msgspec.structs.replace(record, units=left)


def _is_erased(
    record: Record, unit_type: str, unit: str, erased: Mapping[tuple[str, str], Erased]
) -> bool:
    of_type = erased.get((record.project, unit_type))
    if of_type is None:
        return False
    last = of_type.last.get(of_type.key.tombstone(unit_type, unit))
    return last is not None and record.received_at <= last


async def _entries(entries: Sequence[Entry], revise: _Revise) -> list[Entry]:
    kept: list[Entry] = []
    for number, entry in enumerate(entries):
        if number % _RECORDS_A_TURN == _RECORDS_A_TURN - 1:
            await asyncio.sleep(0)
        before = decode(entry.payload)
        after = revise(before)
        if after is before:
            kept.append(entry)
        elif after is not None:
            rows = _rows(entry.ordinal, after)
            # The payload is what is set aside where Postgres refuses the rows.
            kept.append(Entry(entry.ordinal, encode(after), rows, entry.id))
    return kept


def _rows(ordinal: int, record: Record) -> list[bytes]:
    if isinstance(record, ExposureRecord):
        return [exposure_row(record)]
    return outcome_rows(ordinal, record) if isinstance(record, OutcomeRecord) else []


def _letter(letter: Letter, revise: _Revise) -> Letter | None:
    try:
        before = decode(letter.payload)
        after = revise(before)
    except Exception:  # whatever is wrong with it, that is why it is a letter
        return letter
    if after is before:
        return letter
    return None if after is None else Letter(letter.ordinal, encode(after), letter.reason)
