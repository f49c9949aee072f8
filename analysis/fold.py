"""Folding: new events become enrolments, per-unit values and cells of moments, by differences.

Segments that were not folded yet are folded, never "ids above a mark", which would skip what
commits late. A unit that new events touch has its value computed again from the raw events in its
window, and the difference to its stored value goes into its cell; so the order in which events and
commits come in does not matter.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from analysis.metrics import block_of
from analysis.moments import Moments, empty, merge, remove
from experiments.store import Connection

BATCH_SEGMENTS: Final = 200
BATCH_RECORDS: Final = 100_000
"""What one fold takes at most, and one segment at least: it has to end well within a tick."""
ROUTER_LIFE: Final = timedelta(seconds=30)
"""A router that was silent for longer holds the watermark back no more."""

_ROUTERS_SHIPPED_THROUGH = """
    select min(shipped_through) from journal where heartbeat_at > clock_timestamp() - $1::interval
"""
_WAITING_SEGMENTS = """
    select id, records from segment where folded_at is null order by id limit $1
"""
_TAKE_SEGMENTS = "update segment set folded_at = $2 where id = any($1)"
# A unit's first exposure among the new ones joins its enrolment or replaces it where it is earlier;
# of two at one time that of the lower epoch counts, whichever came in first. `_ENROL` gives the
# rows that are new or have changed. What stood there before is read first, by itself: joined to
# them in one statement, whose rows the planner cannot count beforehand, it would cost their square.
_ENROLLED_BEFORE = """
    select e.id, e.variant, e.epoch, e.at, e.several
    from (select distinct experiment, run, unit from exposure where segment = any($1)) x
    join enrolment e using (experiment, run, unit)
"""
_ENROL = """
    with seen as (
        select x.experiment, x.run, x.project, x.unit_type, x.unit, x.variant, x.epoch, x.at,
               min(x.variant) over same <> max(x.variant) over same as several,
               row_number() over (
                   partition by x.experiment, x.run, x.unit order by x.at, x.epoch, x.variant
               ) as place
        from exposure x
        join epoch e on e.experiment = x.experiment and e.number = x.epoch and e.run = x.run
        where x.segment = any($1)
        window same as (partition by x.experiment, x.run, x.unit)
    ),
    first as (select * from seen where place = 1)
    insert into enrolment as e
        (experiment, run, project, unit_type, unit, variant, epoch, at, several)
    select experiment, run, project, unit_type, unit, variant, epoch, at, several
    from first order by experiment, run, unit
    on conflict (experiment, run, unit) do update
    set (at, epoch, variant) = (
            select first.* from (
                values (excluded.at, excluded.epoch, excluded.variant),
                       (e.at, e.epoch, e.variant)
            ) as first (at, epoch, variant)
            order by at, epoch, variant limit 1
        ),
        several = e.several or excluded.several or excluded.variant <> e.variant
    where (excluded.at, excluded.epoch, excluded.variant) < (e.at, e.epoch, e.variant)
       or (not e.several and (excluded.several or excluded.variant <> e.variant))
    returning id, experiment, run, variant, epoch, at, several
"""
_TOUCHED = """
    select distinct e.id
    from outcome o join enrolment e using (project, unit_type, unit)
    where o.segment = any($1)
"""
# A value is made of all outcomes in the unit's window whose segments are folded. Outcomes beyond
# 1e100 count as 1e100, so that no sum of them or of their squares overflows and stops the fold.
_VALUES = """
    select e.id, e.experiment, e.run, e.variant, e.epoch, e.at, m.key, m.version, m.closed_through,
           m.block_seconds, v.value as old_value,
           least(
               case m.aggregate
                   when 'any' then (f.conversions > 0)::int
                   when 'count' then f.outcomes
                   when 'sum' then f.total
               end, m.cap
           )::double precision as value
    from enrolment e
    join run_metric m on m.experiment = e.experiment and m.run = e.run
    cross join lateral (
        select count(*) as outcomes,
               count(*) filter (where o.value is distinct from 0) as conversions,
               coalesce(
                   sum(greatest(-1e100, least(o.value, 1e100))) filter (where o.value is not null),
                   0
               ) as total
        from outcome o join segment s on s.id = o.segment
        where o.project = e.project and o.unit_type = e.unit_type and o.unit = e.unit
          and o.event = m.event and o.at >= e.at and o.at < e.at + m.window_length
          and s.folded_at is not null
    ) f
    left join unit_value v
        on v.enrolment = e.id and v.metric = m.key and v.version = m.version
"""
_OF_UNITS = " where e.id = any($1) and m.backfilled"
_OF_METRIC = """
    where m.experiment = $1 and m.run = $2 and m.key = $3 and m.version = $4 and e.id > $5
    order by e.id limit $6
"""
_KEEP_VALUES = """
    insert into unit_value (enrolment, metric, version, value)
    select * from unnest($1::bigint[], $2::text[], $3::text[], $4::double precision[])
    on conflict (enrolment, metric, version) do update set value = excluded.value
"""
_COUNT_ENROLLED = """
    insert into enrolled as c (experiment, run, variant, epoch, units, several)
    values ($1, $2, $3, $4, $5, $6)
    on conflict (experiment, run, variant, epoch) do update
    set units = c.units + excluded.units, several = c.several + excluded.several
"""
_READ_CELLS = """
    select c.*
    from cell c
    join unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::text[], $6::int[],
                $7::bigint[])
        as wanted (experiment, run, metric, version, variant, epoch, block)
    using (experiment, run, metric, version, variant, epoch, block)
"""
_KEEP_CELL = """
    insert into cell (experiment, run, metric, version, variant, epoch, block, n, mean, m2)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    on conflict (experiment, run, metric, version, block, variant, epoch) do update
    set n = excluded.n, mean = excluded.mean, m2 = excluded.m2
"""
_COUNT_LATE = """
    update run_metric set late = late + $5
    where experiment = $1 and run = $2 and key = $3 and version = $4
"""
_WAITING = """
    select m.experiment, m.run, m.key, m.version from run_metric m
    where not m.backfilled order by m.experiment, m.run, m.key
"""
_BACKFILLED = """
    update run_metric set backfilled = true
    where experiment = $1 and run = $2 and key = $3 and version = $4
"""
COMPACTED: Final = 0
"""The block of a cell that holds all closed blocks of its epoch."""
_BACKFILL_BATCH = 20_000


class CellKey(NamedTuple):
    """What a cell of moments is keyed by (DESIGN 2)."""

    experiment: int
    run: int
    metric: str
    version: str
    variant: str
    epoch: int
    block: int


class Folded(msgspec.Struct, frozen=True):
    """What one fold did. `complete` says that nothing shipped was left over."""

    segments: int
    records: int
    complete: bool


class _Change:
    """What goes into a cell and what comes out of it."""

    __slots__ = ("added", "removed")

    def __init__(self) -> None:
        self.added: list[float] = []
        self.removed: list[float] = []


class _Enrolled(NamedTuple):
    variant: str
    epoch: int
    at: datetime


def _enrolled(row: asyncpg.Record) -> _Enrolled:
    return _Enrolled(row["variant"], row["epoch"], row["at"])


async def fold(connection: Connection, now: datetime) -> Folded:
    """Fold the oldest segments that were not folded yet, and move the watermark.

    The caller's transaction makes it all one: the segments' mark is the position.
    """
    shipped_through = await connection.fetchval(_ROUTERS_SHIPPED_THROUGH, ROUTER_LIFE)
    waiting = await connection.fetch(_WAITING_SEGMENTS, BATCH_SEGMENTS + 1)
    taken = _batch(waiting)
    segments = [row["id"] for row in taken]
    if segments:
        await connection.execute(_TAKE_SEGMENTS, segments, now)
        stood = {row["id"]: row for row in await connection.fetch(_ENROLLED_BEFORE, segments)}
        enrolments = await connection.fetch(_ENROL, segments)
        await _count_enrolments(connection, enrolments, stood)
        before = {
            row["id"]: _enrolled(stood[row["id"]]) if row["id"] in stood else None
            for row in enrolments
        }
        touched = {row["id"] for row in await connection.fetch(_TOUCHED, segments)}
        values = await connection.fetch(_VALUES + _OF_UNITS, sorted(touched | before.keys()))
        await _apply(connection, values, before)
    # What was shipped since is for the next tick: to wait for it would be to wait for ever.
    complete = len(taken) == len(waiting)
    if complete and shipped_through is not None:
        await connection.execute(
            "update fold_position set watermark = greatest(watermark, $1)", shipped_through
        )
    return Folded(len(segments), sum(row["records"] for row in taken), complete)


def _batch(waiting: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
    """The first of the segments, as many as one fold takes."""
    taken: list[asyncpg.Record] = []
    records = 0
    for segment in waiting[:BATCH_SEGMENTS]:
        records += segment["records"]
        if taken and records > BATCH_RECORDS:
            break
        taken.append(segment)
    return taken


async def backfill(connection: Connection) -> None:
    """Compute the values of all enrolled units for metrics that are new to their run.

    The cost is that of the run's history, once for each new version of a metric.
    """
    for metric in await connection.fetch(_WAITING):
        last = 0
        while True:
            values = await connection.fetch(
                _VALUES + _OF_METRIC, *metric.values(), last, _BACKFILL_BATCH
            )
            if not values:
                break
            await _apply(connection, values, dict.fromkeys(row["id"] for row in values))
            last = values[-1]["id"]
        await connection.execute(_BACKFILLED, *metric.values())


async def _count_enrolments(
    connection: Connection,
    rows: Sequence[asyncpg.Record],
    stood: Mapping[int, asyncpg.Record],
) -> None:
    counts: dict[tuple[int, int, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        run = (row["experiment"], row["run"])
        new = counts[*run, row["variant"], row["epoch"]]
        new[0] += 1
        new[1] += row["several"]
        before = stood.get(row["id"])
        if before is not None:
            old = counts[*run, before["variant"], before["epoch"]]
            old[0] -= 1
            old[1] -= before["several"]
    await connection.executemany(
        _COUNT_ENROLLED, [(*key, *count) for key, count in sorted(counts.items()) if any(count)]
    )


async def _apply(
    connection: Connection,
    rows: Sequence[asyncpg.Record],
    before: dict[int, _Enrolled | None],
) -> None:
    """Bring values and cells from what stood to what stands. `before` has the units whose enrolment
    is new (None) or was another."""
    changes: dict[CellKey, _Change] = defaultdict(_Change)
    kept: list[tuple[int, str, str, float]] = []
    late: dict[tuple[int, int, str, str], int] = defaultdict(int)
    for row in rows:
        now = _enrolled(row)
        old = before.get(row["id"], now)
        old_value = row["old_value"] or 0.0
        value = row["value"]
        if old == now and value == old_value:
            continue
        place = _cell_key(row, now)
        changes[place].added.append(value)
        if old is not None:
            changes[_cell_key(row, old)].removed.append(old_value)
        if place.block == COMPACTED:
            late[place[:4]] += 1
        if value != old_value:
            kept.append((row["id"], row["key"], row["version"], value))
    if kept:
        await connection.execute(_KEEP_VALUES, *zip(*kept, strict=True))
    await _keep_cells(connection, changes)
    await connection.executemany(_COUNT_LATE, [(*key, n) for key, n in sorted(late.items())])


def _cell_key(row: asyncpg.Record, enrolled: _Enrolled) -> CellKey:
    block = block_of(enrolled.at, row["block_seconds"])
    return CellKey(
        row["experiment"],
        row["run"],
        row["key"],
        row["version"],
        enrolled.variant,
        enrolled.epoch,
        COMPACTED if block <= row["closed_through"] else block,
    )


async def _keep_cells(connection: Connection, changes: dict[CellKey, _Change]) -> None:
    if not changes:
        return
    cells = await read_cells(connection, changes)
    for key, change in changes.items():
        cell = merge(cells.get(key, empty(1)), Moments.of(change.added))
        cells[key] = remove(cell, Moments.of(change.removed))
    await keep_cells(connection, cells)


async def read_cells(connection: Connection, keys: Iterable[CellKey]) -> dict[CellKey, Moments]:
    """The stored ones among these cells."""
    rows = await connection.fetch(_READ_CELLS, *zip(*keys, strict=True))
    return {CellKey(*(row[name] for name in CellKey._fields)): moments_of(row) for row in rows}


def moments_of(row: asyncpg.Record) -> Moments:
    """The moments in a row of a cell."""
    return Moments(row["n"], tuple(row["mean"]), tuple(row["m2"]))


async def keep_cells(connection: Connection, cells: dict[CellKey, Moments]) -> None:
    """Store cells as they are now."""
    rows: list[tuple[Any, ...]] = [
        (*key, cell.n, list(cell.mean), list(cell.m2)) for key, cell in sorted(cells.items())
    ]
    await connection.executemany(_KEEP_CELL, rows)
