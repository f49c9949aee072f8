"""Folding: new events become enrolments, per-unit values and cells of moments, by differences.

Segments that were not folded yet are folded, never "ids above a mark", which would skip what
commits late; their marks are the position, set in the same transaction. An outcome of a unit that
is enrolled is taken into the unit's state (`aggregates.py`). A unit whose enrolment is new, or has
moved to an earlier exposure, has its state made anew from all its raw events that were folded; so
the order in which events and commits come in does not matter.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.folding.enrol import Batch, enrol
from analysis.folding.health import keep_health
from analysis.folding.metrics import MOST_AHEAD, StoredMetric, read_every_metric
from analysis.folding.position import hold_moments
from analysis.folding.states import Units, unit_key
from analysis.folding.totals import keep_totals
from analysis.folding.values import Outcomes, bring_up_to_date
from analysis.folding.visits import fold_visits
from analysis.folding.wire import UNIX_TO_POSTGRES, Columns, Layout, read_rows
from experiments.model import LARGEST_VALUE
from experiments.store import Connection

BATCH_SEGMENTS: Final = 200
BATCH_RECORDS: Final = 250_000
"""What one fold takes at most, and one segment at least: it has to end well within a tick."""
ROUTER_LIFE: Final = timedelta(seconds=30)
"""Who was silent for longer, while others were heard, holds the watermark back no more."""

# A journal holds the mark back until it is known to be dead: another one was heard all the while
# that it was silent. When Postgres was away all were silent, and the first that comes back proves
# nothing. Where all were withdrawn, nothing is on its way, and the mark follows the clock.
_ROUTERS_SHIPPED_THROUGH = """
    select case
        when exists (select from journal) then (
            select min(j.shipped_through) from journal j
            where not exists (
                select from journal other
                where other.heartbeat_at - greatest(j.heartbeat_at, other.beating_since) > $1
            )
        )
        else (select clock_timestamp() - $1 from fold_position where watermark > '-infinity')
    end
"""
_WAITING_SEGMENTS = """
    select id, records from segment where folded_at is null order by id limit $1
"""
_TAKE_SEGMENTS = """
    update segment set folded_at = $2 where id = any($1) and folded_at is null
    returning received_from, received_to
"""
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_IN_FUTURE: Final = datetime(9999, 1, 1, tzinfo=UTC)
# After a change of what is kept everything is folded again (migration 0002): that was not late.
_REFOLDED = """
    with done as (update fold_position set refolding = false where refolding returning 1)
    update run_metric set late = 0 where exists (select from done)
"""
_WATERMARK = "update fold_position set watermark = greatest(watermark, $1)"
# How many rows a batch has the planner cannot know. So the way is prescribed: in the order of the
# joins as they are written, from the batch, by indexes, to what it names. That costs as much as the
# batch is large, and does not grow with what is stored.
BY_INDEX: Final = """
    set local join_collapse_limit = 1; set local from_collapse_limit = 1;
    set local enable_hashjoin = off; set local enable_mergejoin = off;
    set local enable_seqscan = off
"""
# Arm and profile go in one number: of this many rows each column shows in the cost of a fold.
_NEW_OUTCOMES = """
    select m.metric, m.part, e.ordinal, coalesce(o.value, 'NaN'), o.at, e.at,
           e.arm + (e.profile::bigint << 32)
    from outcome o
    join enrolment e
        on e.unit = o.unit collate "C" and e.unit_type = o.unit_type and e.project = o.project
    join metric_part m
        on m.experiment = e.experiment and m.run = e.run and m.event = o.event
    where o.segment = any($1) and o.received_at >= $2 and o.received_at <= $3
      and o.at >= e.at + m.begins and o.at < e.at + m.ends
"""
_OUTCOMES_OF_MOVED = """
    select m.metric, m.part, e.ordinal, coalesce(o.value, 'NaN'), o.at
    from moved e
    join outcome o
        on hashtextextended(o.unit, 0) = hashtextextended(e.unit, 0)
       and o.unit collate "C" = e.unit and o.unit_type = e.unit_type and o.project = e.project
    join metric_part m
        on m.experiment = e.experiment and m.run = e.run and m.event = o.event
    join segment s on s.id = o.segment and s.folded_at is not null
    where (e.arm, e.at) is distinct from (e.old_arm, e.old_at)
      and o.received_at >= $1 and o.at >= e.at + m.begins and o.at < e.at + m.ends
"""
# No outcome of these units that counts was received before.
_EARLIEST = """
    select min(e.at) + least(interval '0', min(m.begins)) - $1::interval
    from moved e left join metric_part m on m.experiment = e.experiment and m.run = e.run
"""
_OUTCOME: Final = {
    "metric": "int4",
    "part": "int4",
    "ordinal": "int8",
    "value": "float8",
    "at": "time",
}
_OUTCOME_LAYOUT: Final = Layout(_OUTCOME)
_NEW_LAYOUT: Final = Layout(_OUTCOME | {"enrolled_at": "time", "arm_and_profile": "int8"})


class Folded(msgspec.Struct, frozen=True):
    """What one fold did. `complete` says that nothing shipped was left over."""

    segments: int
    records: int
    complete: bool


class FoldError(Exception):
    """Another process folds, too: what this one has done is to be undone."""


async def fold(connection: Connection, now: datetime, records: int = BATCH_RECORDS) -> Folded:
    """Fold the oldest segments that were not folded yet, and move the watermark.

    The caller's transaction makes it all one.

    Args:
        records: how many it may take at most, but for a single segment.

    Raises:
        FoldError: if one of the segments was folded meanwhile.
    """
    await hold_moments(connection)
    shipped_through = await connection.fetchval(_ROUTERS_SHIPPED_THROUGH, ROUTER_LIFE)
    waiting = await connection.fetch(_WAITING_SEGMENTS, BATCH_SEGMENTS + 1)
    taken = _batch(waiting, records)
    segments = [row["id"] for row in taken]
    if segments:
        times = await connection.fetch(_TAKE_SEGMENTS, segments, now)
        if len(times) != len(segments):
            raise FoldError("a segment was folded by another process")
        await _fold_segments(connection, _batch_of(segments, times))
    # What was shipped since is for the next tick: to wait for it would be to wait for ever.
    complete = len(taken) == len(waiting)
    if complete:
        await connection.execute(_REFOLDED)
    if complete and shipped_through is not None:
        await connection.execute(_WATERMARK, shipped_through)
    return Folded(len(segments), sum(row["records"] for row in taken), complete)


def _batch(waiting: Sequence[asyncpg.Record], limit: int) -> list[asyncpg.Record]:
    """The first of the segments, as many as one fold takes."""
    taken: list[asyncpg.Record] = []
    records = 0
    for segment in waiting[:BATCH_SEGMENTS]:
        records += segment["records"]
        if taken and records > limit:
            break
        taken.append(segment)
    return taken


def _batch_of(segments: Sequence[int], times: Sequence[asyncpg.Record]) -> Batch:
    if any(row["received_from"] is None for row in times):
        return Batch(segments, _LONG_AGO, _IN_FUTURE)
    return Batch(
        segments,
        min(row["received_from"] for row in times),
        max(row["received_to"] for row in times),
    )


async def _fold_segments(connection: Connection, batch: Batch) -> None:
    await connection.execute(BY_INDEX)
    moved = await enrol(connection, batch)
    runs = set(zip(moved["experiment"].tolist(), moved["run"].tolist(), strict=True))
    metrics, of_visits, fresh = await _read_fresh(connection, runs, batch)
    # What counts for metrics of the scope `exposure` goes its own way (`visits.py`).
    visits = _only(fresh, np.isin(fresh["metric"], of_visits))
    fresh = _only(fresh, _is_counted(fresh, metrics))
    anew = units_of_moved(moved, metrics)
    of_moved = _only(fresh, np.zeros(len(fresh["metric"]), np.bool_))
    if len(anew.metric) or (of_visits and len(moved["ordinal"])):
        of_moved = await _read_of_moved(connection)
    remade = np.isin(
        unit_key(fresh["metric"], fresh["ordinal"]), unit_key(anew.metric, anew.ordinal)
    )
    touched = _only(fresh, ~remade)
    outcomes = [_outcomes(touched)]
    if len(anew.metric):
        outcomes.append(_of_units(of_moved, anew))
    units = [anew, _units_of(touched)]
    counted = Outcomes(*map(np.concatenate, zip(*outcomes, strict=True)))
    await apply(connection, metrics, Units(*map(np.concatenate, zip(*units, strict=True))), counted)
    await keep_health(connection, batch, metrics, moved, counted)
    await fold_visits(connection, batch, moved, visits, of_moved)


async def apply(
    connection: Connection, metrics: Sequence[StoredMetric], units: Units, outcomes: Outcomes
) -> None:
    """Take units and their outcomes into values, cells and sums over epochs."""
    changes = await bring_up_to_date(connection, metrics, units, outcomes)
    await keep_totals(connection, metrics, changes)


async def _read_fresh(
    connection: Connection, runs: Iterable[tuple[int, int]], batch: Batch
) -> tuple[list[StoredMetric], list[int], Columns]:
    """The metrics of these runs and all others that a batch's outcomes count for, but for those of
    the scope `exposure`, of which there are the numbers; and all of these outcomes."""
    fresh = await read_rows(connection, _NEW_OUTCOMES, _NEW_LAYOUT, *batch)
    every = await read_every_metric(connection, runs, np.unique(fresh["metric"]).tolist())
    metrics = [metric for metric in every if metric.made.scope == "enrolment"]
    return metrics, [m.id for m in every if m.made.scope == "exposure"], fresh


async def read_standing(
    connection: Connection, batch: Batch
) -> tuple[list[StoredMetric], Units, Outcomes]:
    """The outcomes of a batch that was folded, as they count in the states of their units."""
    metrics, _, fresh = await _read_fresh(connection, (), batch)
    rows = _only(fresh, _is_counted(fresh, metrics))
    return metrics, _units_of(rows), _outcomes(rows)


async def outcomes_of_moved(connection: Connection, units: Units) -> Outcomes:
    """All folded outcomes of the units in `moved` that count for one of these, which are made of
    `moved`."""
    return _of_units(await _read_of_moved(connection), units)


async def _read_of_moved(connection: Connection) -> Columns:
    """All folded outcomes of the units in `moved`."""
    earliest = await connection.fetchval(_EARLIEST, MOST_AHEAD)
    return await read_rows(connection, _OUTCOMES_OF_MOVED, _OUTCOME_LAYOUT, earliest)


def _of_units(rows: Columns, units: Units) -> Outcomes:
    counted = units.at_rows(np.flatnonzero(units.arm != 0))
    wanted = unit_key(counted.metric, counted.ordinal)
    return _outcomes(_only(rows, np.isin(unit_key(rows["metric"], rows["ordinal"]), wanted)))


def units_of_moved(moved: Columns, metrics: Sequence[StoredMetric]) -> Units:
    """The units of `moved` whose values are made anew, for each metric that covers them."""
    another = (moved["arm"] != moved["old_arm"]) | (moved["at"] != moved["old_at"])
    parts = []
    for metric in metrics:
        of_run = (moved["experiment"] == metric.experiment) & (moved["run"] == metric.run)
        if metric.covered is not None:
            of_run &= moved["ordinal"] < metric.covered
        rows = _only(moved, another & of_run)
        number = np.full(len(rows["ordinal"]), metric.id)
        arm = np.where(rows["at"] < _since(metric), 0, rows["arm"])
        old_arm = np.where(rows["old_at"] < _since(metric), 0, rows["old_arm"])
        units = Units(
            *(number, rows["ordinal"], arm, rows["at"], rows["profile"]),
            *(old_arm, rows["old_at"], rows["old_profile"]),
            afresh=np.ones_like(number),
        )
        parts.append(units.at_rows(np.flatnonzero((arm != 0) | (old_arm != 0))))
    if not parts:
        return Units(*(np.empty(0, np.int64) for _ in Units._fields))
    return Units(*map(np.concatenate, zip(*parts, strict=True)))


def _units_of(fresh: Columns) -> Units:
    """The units, each once, that new outcomes touch; they stay where they are."""
    _, first = np.unique(unit_key(fresh["metric"], fresh["ordinal"]), return_index=True)
    rows = {name: column[first] for name, column in fresh.items()}
    both = rows["arm_and_profile"]
    place = {"arm": both & 0xFFFFFFFF, "at": rows["enrolled_at"], "profile": both >> 32}
    return Units.standing(rows["metric"], rows | place)


def _outcomes(rows: Columns) -> Outcomes:
    # The doors refuse what lies beyond; whatever came in otherwise must not stop the fold.
    value = np.clip(rows["value"], -LARGEST_VALUE, LARGEST_VALUE)
    return Outcomes(rows["metric"], rows["part"], rows["ordinal"], value, rows["at"])


def _only(rows: Columns, which: NDArray[np.bool_]) -> Columns:
    return {name: column[which] for name, column in rows.items()}


def _is_counted(rows: Columns, metrics: Sequence[StoredMetric]) -> NDArray[np.bool_]:
    """Whether units have values of these metrics; some are never to have one, or get it by a
    backfill."""
    if not metrics:
        return np.zeros(len(rows["metric"]), np.bool_)
    numbers = np.array([m.id for m in metrics])
    place = np.minimum(np.searchsorted(numbers, rows["metric"]), len(numbers) - 1)
    covered = np.array([np.inf if m.covered is None else m.covered for m in metrics])
    since = np.array([_since(m) for m in metrics])
    counted: NDArray[np.bool_] = (
        (numbers[place] == rows["metric"])
        & (rows["ordinal"] < covered[place])
        & (rows["enrolled_at"] >= since[place])
    )
    return counted


def _since(metric: StoredMetric) -> float:
    """The enrolment, in microseconds since 2000, from which a metric counts units."""
    if metric.since is None:
        return -math.inf
    return (metric.since - _LONG_AGO) // timedelta(microseconds=1) - UNIX_TO_POSTGRES
