"""Enrolment blocks: closed once all their units have finished, then compacted.

What decides reads closed blocks only, in order and each once; later corrections go into the
compacted cell and are counted as late.
"""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta

import asyncpg
import msgspec

from analysis.fold import COMPACTED, CellKey, keep_cells, moments_of, read_cells
from analysis.metrics import RunMetric
from analysis.moments import Cells, Moments, empty, merge
from experiments.store import Connection

_METRICS = """
    select key, version, kind, event, aggregate, cap, window_length as window, block_seconds,
           closed_through
    from run_metric where experiment = $1 and run = $2 and backfilled order by key, version
    for update
"""
_OPEN_CELLS = """
    select * from cell
    where experiment = $1 and run = $2 and metric = $3 and version = $4
      and block > $5 and block <= $6
    order by block, epoch, variant
"""
_FORGET = """
    delete from cell
    where experiment = $1 and run = $2 and metric = $3 and version = $4
      and block > $5 and block <= $6
"""
_CLOSE = """
    update run_metric set closed_through = $5
    where experiment = $1 and run = $2 and key = $3 and version = $4
"""


class Closed(msgspec.Struct, frozen=True):
    """The blocks of a metric that closed just now, in order."""

    metric: RunMetric
    blocks: tuple[tuple[int, Cells], ...]


async def close_blocks(
    connection: Connection, experiment: int, run: int, watermark: datetime, lateness: timedelta
) -> list[Closed]:
    """Close what lies below the watermark, for each metric of a run."""
    return [
        await _close(connection, experiment, run, row, watermark, lateness)
        for row in await connection.fetch(_METRICS, experiment, run)
    ]


async def _close(
    connection: Connection,
    experiment: int,
    run: int,
    row: asyncpg.Record,
    watermark: datetime,
    lateness: timedelta,
) -> Closed:
    metric = RunMetric(**{name: row[name] for name in RunMetric.__struct_fields__})
    through = metric.last_closed(watermark, lateness)
    if through <= row["closed_through"]:
        return Closed(metric, ())
    name = (experiment, run, metric.key, metric.version)
    stretch = (*name, row["closed_through"], through)
    blocks: dict[int, dict[tuple[int, str], Moments]] = defaultdict(dict)
    for cell in await connection.fetch(_OPEN_CELLS, *stretch):
        blocks[cell["block"]][cell["epoch"], cell["variant"]] = moments_of(cell)
    if blocks:
        await _compact(connection, name, blocks)
        await connection.execute(_FORGET, *stretch)
    await connection.execute(_CLOSE, *name, through)
    return Closed(metric, tuple(blocks.items()))


async def _compact(
    connection: Connection,
    name: tuple[int, int, str, str],
    blocks: Mapping[int, Cells],
) -> None:
    keys = {
        CellKey(*name, variant, epoch, COMPACTED)
        for seen in blocks.values()
        for epoch, variant in seen
    }
    cells = await read_cells(connection, keys)
    for seen in blocks.values():
        for (epoch, variant), moments in seen.items():
            key = CellKey(*name, variant, epoch, COMPACTED)
            cells[key] = merge(cells.get(key, empty(moments.d)), moments)
    await keep_cells(connection, cells)
