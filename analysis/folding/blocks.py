"""Enrolment blocks: closed once all their units have finished, then compacted.

What decides reads closed blocks only, in order and each once; later corrections go into the
compacted cell and are counted as late.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.folding.cells import CLOSED, Keys, distinct, keep_cells, moments_of, read_cells
from analysis.folding.metrics import RunMetric, StoredMetric, read_every_metric
from analysis.folding.tables import Table, empty_table, merge_tables
from analysis.folding.totals import keep_totals
from analysis.folding.values import Changes
from analysis.inference.moments import Cells, Moments
from analysis.inference.value_counts import Buckets
from experiments.store import Connection

# In one order, as an erasure takes them, so that neither waits for the other in a circle.
_LOCK_METRICS = """
    select from run_metric where experiment = $1 and run = $2 order by id for update
"""
# Those of segments, which are no arms, are compacted with the others; nothing is decided by them.
_OPEN_CELLS = """
    select c.arm, a.epoch, a.variant, c.block, c.n, c.mean, c.m2
    from cell c left join arm a on a.id = c.arm
    where c.metric = $1 and c.block > $2 and c.block <= $3
    order by c.block, a.epoch, a.variant, c.arm
"""
_LAST_OF_SOME = """
    select block from cell where metric = $1 and block > $2 and block <= $3
    order by block, arm offset $4 limit 1
"""
_FORGET = """
    delete from cell c
    using unnest($1::int[], $2::bigint[], $3::bigint[]) as closed (metric, after, through)
    where c.metric = closed.metric and c.block > closed.after and c.block <= closed.through
"""
_OPEN_HISTOGRAMS = """
    select h.block, a.epoch, a.variant, h.bucket, h.n
    from histogram h join arm a on a.id = h.arm
    where h.metric = $1 and h.block > $2 and h.block <= $3 and h.n > 0
    order by h.block, a.epoch, a.variant, h.bucket
"""
_LAST_OF_SOME_BUCKETS = """
    select block from histogram where metric = $1 and block > $2 and block <= $3
    order by block, arm, bucket offset $4 limit 1
"""
_CLOSE_HISTOGRAMS = """
    with gone as (
        delete from histogram where metric = $1 and block > $2 and block <= $3
        returning arm, bucket, n
    )
    insert into histogram as h (metric, block, arm, bucket, n)
    select $1, $4, arm, bucket, sum(n) from gone group by arm, bucket
    on conflict (metric, block, arm, bucket) do update set n = h.n + excluded.n
"""
_CLOSE = """
    update run_metric m set closed_through = closed.through
    from unnest($1::int[], $2::bigint[]) as closed (metric, through) where m.id = closed.metric
"""
# All at once for those in which there is nothing to close: most of them, at most of the looks.
_CLOSE_EMPTY = """
    with due as (
        select * from unnest($1::int[], $2::bigint[]) as wanted (metric, through)
    ), filled as materialized (
        select d.metric from due d
        where exists (
            select from cell c where c.metric = d.metric and c.block > 0 and c.block <= d.through
        ) or exists (select from visit v where v.metric = d.metric and v.block <= d.through)
    ), passed as (
        update run_metric m set closed_through = d.through from due d
        where m.id = d.metric and d.metric not in (select metric from filled)
    )
    select metric from filled
"""

MOST_CELLS: Final = 40_000
MOST_BUCKETS: Final = 40_000
"""What is closed of a metric at once, and one block at least; the rest is for the next tick. The
other experiments wait for the transaction that closes it."""


Histograms: TypeAlias = Mapping[tuple[int, str], Buckets]
"""Where the values of a quantile lie, by (epoch, variant)."""


class Closed(msgspec.Struct, frozen=True):
    """The blocks of a metric that closed just now, in order; of a quantile with the histograms of
    those in which a unit had a value."""

    metric: RunMetric
    blocks: tuple[tuple[int, Cells], ...]
    histograms: Mapping[int, Histograms] = {}


async def hold_closable(
    connection: Connection, experiment: int, run: int, watermark: datetime, lateness: timedelta
) -> list[StoredMetric]:
    """The metrics of a run, of either scope, that have something to close, in the order of their
    ids; all metrics of the run are held to the end of the transaction. What is empty is closed
    here. One whose values are not all there yet waits."""
    await connection.execute(_LOCK_METRICS, experiment, run)
    throughs = {
        metric.id: (metric, through)
        for metric in await read_every_metric(connection, [(experiment, run)], [])
        if metric.covered is None
        and (through := metric.made.last_closed(watermark, lateness)) > metric.closed_through
    }
    if not throughs:
        return []
    wanted = [through for _, through in throughs.values()]
    filled = await connection.fetch(_CLOSE_EMPTY, [*throughs], wanted)
    return [throughs[number][0] for number in sorted(row["metric"] for row in filled)]


async def close_blocks(
    connection: Connection,
    metrics: Sequence[StoredMetric],
    watermark: datetime,
    lateness: timedelta,
) -> list[Closed]:
    """Close what lies below the watermark, of those of these metrics that count enrolments; the
    caller holds them (`hold_closable`)."""
    found = [
        await _read_open(connection, metric, metric.made.last_closed(watermark, lateness))
        for metric in metrics
        if metric.made.scope == "enrolment"
    ]
    if not found:
        return []
    # Cells of as many dimensions are merged at once, of whatever metric they are.
    of_width: dict[int, list[_Open]] = defaultdict(list)
    for each in found:
        if each.rows:
            of_width[len(each.rows[0]["mean"])].append(each)
    changes = [await _compact(connection, some) for some in of_width.values()]
    await keep_totals(connection, [each.metric for each in found], changes)
    for each in found:
        if each.metric.made.kind == "quantile":
            stretch = each.metric.id, each.metric.closed_through, each.through
            await connection.execute(_CLOSE_HISTOGRAMS, *stretch, CLOSED)
    ids = [each.metric.id for each in found]
    throughs = [each.through for each in found]
    await connection.execute(_FORGET, ids, [each.metric.closed_through for each in found], throughs)
    await connection.execute(_CLOSE, ids, throughs)
    return [_closed(each) for each in found]


class _Open(NamedTuple):
    """What is open of a metric, up to the block through which it is closed."""

    metric: StoredMetric
    through: int
    rows: Sequence[asyncpg.Record]
    histograms: Mapping[int, Histograms]


async def _read_open(connection: Connection, metric: StoredMetric, through: int) -> _Open:
    through = await _bounded(connection, metric, through)
    rows = await connection.fetch(_OPEN_CELLS, metric.id, metric.closed_through, through)
    return _Open(metric, through, rows, await _histograms(connection, metric, through))


def _closed(found: _Open) -> Closed:
    blocks: dict[int, dict[tuple[int, str], Moments]] = defaultdict(dict)
    for row in found.rows:
        if row["epoch"] is not None:
            blocks[row["block"]][row["epoch"], row["variant"]] = moments_of(row)
    return Closed(found.metric.made, tuple(blocks.items()), found.histograms)


async def _bounded(connection: Connection, metric: StoredMetric, through: int) -> int:
    """The last block, up to this one, before which no more lies than is closed at once."""
    limits = [(_LAST_OF_SOME, MOST_CELLS)]
    if metric.made.kind == "quantile":
        limits.append((_LAST_OF_SOME_BUCKETS, MOST_BUCKETS))
    first = metric.closed_through + metric.made.block_seconds
    for query, most in limits:
        beyond: int | None = await connection.fetchval(
            query, metric.id, metric.closed_through, through, most
        )
        if beyond is not None:
            through = max(beyond - metric.made.block_seconds, first)
    return through


async def _histograms(
    connection: Connection, metric: StoredMetric, through: int
) -> dict[int, Histograms]:
    """Those of the blocks that close, of a quantile."""
    if metric.made.kind != "quantile":
        return {}
    found: dict[int, dict[tuple[int, str], list[tuple[int, int]]]] = {}
    for row in await connection.fetch(_OPEN_HISTOGRAMS, metric.id, metric.closed_through, through):
        of_block = found.setdefault(row["block"], defaultdict(list))
        of_block[row["epoch"], row["variant"]].append((row["bucket"], row["n"]))
    return {
        block: {arm: tuple(buckets) for arm, buckets in of_block.items()}
        for block, of_block in found.items()
    }


async def _compact(connection: Connection, found: Sequence[_Open]) -> Changes:
    """Merge cells of metrics, which stand in the order of their blocks, into the closed ones of
    their arms. All have as many dimensions."""
    rows_of = [row for each in found for row in each.rows]
    table = Table(
        np.array([row["n"] for row in rows_of]),
        np.array([row["mean"] for row in rows_of]),
        np.array([row["m2"] for row in rows_of]),
    )
    metric = np.repeat([each.metric.id for each in found], [len(each.rows) for each in found])
    arm = np.array([row["arm"] for row in rows_of])
    keys, place = distinct(Keys(metric, np.full(len(arm), CLOSED), arm))
    before = after = await read_cells(connection, keys, table.mean.shape[1])
    turn = _turns(place)
    for number in range(turn.max() + 1):
        rows = np.flatnonzero(turn == number)
        added = empty_table(len(keys.metric), table.mean.shape[1])
        for column, values in zip(added, table.at(rows), strict=True):
            column[place[rows]] = values
        after = merge_tables(after, added)
    await keep_cells(connection, keys, after)
    return Changes(keys, before, after)


def _turns(place: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier rows have the same place: rows of one turn are of different cells."""
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], place[order])
    turn = np.empty(len(place), np.int64)
    turn[order] = np.arange(len(place)) - first
    return turn
