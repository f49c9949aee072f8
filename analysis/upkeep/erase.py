"""Erasure: a unit is forgotten, and what was made of it is what the others make.

Its enrolments leave their runs as if they moved to no arm at all, by the machinery of folding; so
counts, values, cells, histograms and sums over epochs stay true. It leaves the open blocks of
visits (`folding/visits.py`); those that closed are moments that know of no unit, and stay. Its raw
events and dead letters are deleted, and so are its overrides. A tombstone keeps out what is still
on its way: shippers drop whatever was received until then. The tombstone is the audit, too; it
knows the unit by a keyed hash only.

One transaction does it all. It excludes folding from its beginning, and shipping for its last part.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, TypeAlias

import msgspec
import numpy as np

from analysis.folding.enrol import count_arms, make_room, read_moved
from analysis.folding.fold import BY_INDEX, apply, units_of_moved
from analysis.folding.meetings import forget_meetings
from analysis.folding.metrics import read_metrics
from analysis.folding.position import hold_moments
from analysis.folding.segments import count_segments, forget_values
from analysis.folding.values import Outcomes
from analysis.folding.visits import forget_visits
from experiments import overrides, store
from experiments.store import Connection
from experiments.units import SHIPPING_LOCK, UnitKey

# Closing of blocks moves cells, too; it holds these rows while it is at it.
_LOCK_METRICS: Final = """
    select from run_metric
    where (experiment, run) in (
        select experiment + 0, run + 0 from enrolment
        where unit = $3 and unit_type = $2 and project = $1
    )
    order by id for update
"""
# It leaves the arm that it was in for none. Its ordinal is not given to another unit.
_LEAVE: Final = """
    with gone as (
        delete from enrolment where unit = $3 and unit_type = $2 and project = $1
        returning experiment, run, ordinal, project, unit_type, unit, arm, at, several, profile
    )
    insert into moved
    select experiment, run, ordinal, project, unit_type, unit, 0, at, several, 0,
           arm, at, several, profile
    from gone
"""
_COUNT_LEFT: Final = """
    update run r set erased = r.erased + 1
    from moved gone where r.experiment = gone.experiment and r.number = gone.run
"""
# What its dropped events left in the opening balances, one place of 128 for each number.
_FORGET_OPENINGS: Final = """
    update unit_value v set opening = (
        select array_agg(
            case when (place - 1) % 128 = gone.ordinal % 128 then 0 else number end order by place
        )
        from unnest(v.opening) with ordinality as opening (number, place)
    )
    from moved gone
    join run_metric m on m.experiment = gone.experiment and m.run = gone.run
    where v.metric = m.id and v.chunk = gone.ordinal / 128 and v.opening is not null
"""
_LOCK_SHIPPING: Final = "select pg_advisory_xact_lock($1)"
_DELETE_EXPOSURES: Final = """
    delete from exposure
    where hashtextextended(unit, 0) = hashtextextended($3, 0)
      and unit = $3 and unit_type = $2 and project = $1
"""
_DELETE_OUTCOMES: Final = """
    delete from outcome
    where hashtextextended(unit, 0) = hashtextextended($3, 0)
      and unit = $3 and unit_type = $2 and project = $1
"""
_LETTERS: Final = """
    select segment, ordinal, record from dead_letter where position($1::bytea in record) > 0
"""
_DELETE_LETTERS: Final = """
    delete from dead_letter
    where (segment, ordinal) in (select * from unnest($1::bigint[], $2::int[]))
"""
_BURY: Final = """
    insert into erasure (project, unit_type, unit_hash, erased_at, actor, reason, counts)
    values ($1, $2, $3, $4, $5, $6, $7)
"""
_COUNT: Final = """
    update project set erasures = erasures + 1, version = version + 1 where key = $1
"""

NamesUnit: TypeAlias = Callable[[bytes, str, str, str], bool]
"""Whether the record in a dead letter names a unit: of a project, of a type, as it is stored."""


class Erased(msgspec.Struct, frozen=True):
    """How much there was of a unit: raw rows, runs that it was enrolled in, and dead letters."""

    exposures: int = 0
    outcomes: int = 0
    enrolments: int = 0
    dead_letters: int = 0

    def __add__(self, other: "Erased") -> "Erased":
        return Erased(
            self.exposures + other.exposures,
            self.outcomes + other.outcomes,
            self.enrolments + other.enrolments,
            self.dead_letters + other.dead_letters,
        )


class Order(msgspec.Struct, frozen=True):
    """Which units are to be erased, by whom and why.

    `units` are pairs of unit type and unit, as they are stored; each type is there once.
    """

    project: str
    units: Sequence[tuple[str, str]]
    actor: str
    reason: str


async def erase(
    connection: Connection,
    order: Order,
    key: UnitKey,
    clock: Callable[[], datetime],
    names_unit: NamesUnit,
) -> Erased:
    """Erase units in the caller's transaction, in which no run or experiment was locked before.

    Args:
        key: that of the project, for the tombstones.
        clock: the one that stamps what is received.
    """
    project = order.project
    await hold_moments(connection)
    overridden = await overrides.forget_units(connection, project, order.units)
    await connection.execute(BY_INDEX)
    enrolments = [await _leave_runs(connection, project, *unit) for unit in order.units]
    await connection.execute(_LOCK_SHIPPING, SHIPPING_LOCK)
    # Now all that was received before is in the tables or will meet the tombstone.
    erased_at = clock()
    total = Erased()
    for (unit_type, unit), runs in zip(order.units, enrolments, strict=True):
        erased = Erased(
            exposures=await _delete(connection, _DELETE_EXPOSURES, project, unit_type, unit),
            outcomes=await _delete(connection, _DELETE_OUTCOMES, project, unit_type, unit),
            enrolments=runs,
            dead_letters=await _delete_letters(connection, names_unit, project, unit_type, unit),
        )
        await connection.execute(
            _BURY,
            project,
            unit_type,
            key.tombstone(unit_type, unit),
            erased_at,
            order.actor,
            order.reason,
            msgspec.json.encode(erased).decode(),
        )
        total += erased
    await connection.execute(_COUNT, project)
    if overridden:
        await store.mark_changed(connection, project, overridden)
    return total


async def _leave_runs(connection: Connection, project: str, unit_type: str, unit: str) -> int:
    """Take a unit out of all its runs; how many those were."""
    await connection.execute(_LOCK_METRICS, project, unit_type, unit)
    await make_room(connection)
    await connection.execute(_LEAVE, project, unit_type, unit)
    moved = await read_moved(connection)
    runs = set(zip(moved["experiment"].tolist(), moved["run"].tolist(), strict=True))
    if runs:
        await connection.execute(_COUNT_LEFT)
        await count_arms(connection)
        await count_segments(connection)
        await forget_values(connection)
        await connection.execute(_FORGET_OPENINGS)
        await forget_meetings(connection)
        await forget_visits(connection)
        metrics = await read_metrics(connection, runs, ())
        nothing, no_value = np.empty(0, np.int64), np.empty(0, np.float64)
        outcomes = Outcomes(nothing, nothing, nothing, no_value, nothing)
        await apply(connection, metrics, units_of_moved(moved, metrics), outcomes)
    return len(runs)


async def _delete(
    connection: Connection, query: str, project: str, unit_type: str, unit: str
) -> int:
    status = await connection.execute(query, project, unit_type, unit)
    return int(status.removeprefix("DELETE "))


async def _delete_letters(
    connection: Connection, names_unit: NamesUnit, project: str, unit_type: str, unit: str
) -> int:
    rows = await connection.fetch(_LETTERS, unit.encode())
    found = [row for row in rows if names_unit(row["record"], project, unit_type, unit)]
    if found:
        await connection.execute(
            _DELETE_LETTERS, [row["segment"] for row in found], [row["ordinal"] for row in found]
        )
    return len(found)
