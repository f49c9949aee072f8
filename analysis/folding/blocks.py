"""Enrolment blocks: closed once all their units have finished, then compacted.

What decides reads closed blocks only, in order and each once; later corrections go into the
compacted cell and are counted as late.
"""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.folding.cells import CLOSED, Keys, distinct, keep_cells, moments_of, read_cells
from analysis.folding.metrics import RunMetric, StoredMetric, read_metrics
from analysis.folding.tables import Table, empty_table, merge_tables
from analysis.folding.totals import keep_totals
from analysis.folding.values import Changes
from analysis.inference.moments import Cells, Moments
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
_FORGET = "delete from cell where metric = $1 and block > $2 and block <= $3"
_CLOSE_HISTOGRAMS = """
    with gone as (
        delete from histogram where metric = $1 and block > $2 and block <= $3
        returning arm, bucket, n
    )
    insert into histogram as h (metric, block, arm, bucket, n)
    select $1, $4, arm, bucket, sum(n) from gone group by arm, bucket
    on conflict (metric, block, arm, bucket) do update set n = h.n + excluded.n
"""
_CLOSE = "update run_metric set closed_through = $2 where id = $1"

MOST_CELLS: Final = 40_000
"""What is closed of a metric at once, and one block at least; the rest is for the next tick. The
other experiments wait for the transaction that closes it."""


class Closed(msgspec.Struct, frozen=True):
    """The blocks of a metric that closed just now, in order."""

    metric: RunMetric
    blocks: tuple[tuple[int, Cells], ...]


async def close_blocks(
    connection: Connection, experiment: int, run: int, watermark: datetime, lateness: timedelta
) -> list[Closed]:
    """Close what lies below the watermark, for each metric of a run whose values are all there."""
    await connection.execute(_LOCK_METRICS, experiment, run)
    return [
        await _close(connection, metric, watermark, lateness)
        for metric in await read_metrics(connection, [(experiment, run)], [])
        if metric.covered is None
    ]


async def _close(
    connection: Connection, metric: StoredMetric, watermark: datetime, lateness: timedelta
) -> Closed:
    through = metric.made.last_closed(watermark, lateness)
    if through <= metric.closed_through:
        return Closed(metric.made, ())
    through = await _bounded(connection, metric, through)
    stretch = (metric.id, metric.closed_through, through)
    rows = await connection.fetch(_OPEN_CELLS, *stretch)
    if rows:
        arms = np.array([row["arm"] for row in rows])
        table = Table(
            np.array([row["n"] for row in rows]),
            np.array([row["mean"] for row in rows]),
            np.array([row["m2"] for row in rows]),
        )
        await keep_totals(connection, [metric], [await _compact(connection, metric, arms, table)])
        await connection.execute(_FORGET, *stretch)
        await connection.execute(_CLOSE_HISTOGRAMS, *stretch, CLOSED)
    await connection.execute(_CLOSE, metric.id, through)
    blocks: dict[int, dict[tuple[int, str], Moments]] = defaultdict(dict)
    for row in rows:
        if row["epoch"] is not None:
            blocks[row["block"]][row["epoch"], row["variant"]] = moments_of(row)
    return Closed(metric.made, tuple(blocks.items()))


async def _bounded(connection: Connection, metric: StoredMetric, through: int) -> int:
    """The last block, up to this one, before which no more lies than is closed at once."""
    beyond: int | None = await connection.fetchval(
        _LAST_OF_SOME, metric.id, metric.closed_through, through, MOST_CELLS
    )
    if beyond is None:
        return through
    first = metric.closed_through + metric.made.block_seconds
    return max(beyond - metric.made.block_seconds, first)


async def _compact(
    connection: Connection, metric: StoredMetric, arms: NDArray[np.int64], table: Table
) -> Changes:
    """Merge cells, which stand in the order of their blocks, into the closed ones of their arms."""
    where = np.full(len(arms), metric.id), np.full(len(arms), CLOSED)
    keys, place = distinct(Keys(*where, arms))
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
