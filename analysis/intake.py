"""Takes a run's definition in: the metrics that folding computes and the pairs that the guard
watches. Done once for each revision, before the events are folded."""

from datetime import datetime

import asyncpg

from analysis import guard
from analysis.fold import backfill
from analysis.metrics import run_metric
from experiments import store
from experiments.store import Connection

_WAITING = """
    select x.id, x.project, x.key, r.started_at, r.analysed_revision
    from experiment x join run r on r.experiment = x.id and r.number = x.run
    where r.analysed_revision <> x.revision
      and (x.state in ('running', 'paused') or r.analysed_revision = 0)
    order by x.id
"""
# A metric that a revision drops goes on being folded: it may come back, and its report stays true.
_ADD_METRIC = """
    insert into run_metric (experiment, run, key, version, kind, event, aggregate, cap,
                            window_length, block_seconds, closed_through)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    on conflict (experiment, run, key, version) do nothing
"""
_TAKEN_IN = "update run set analysed_revision = $3 where experiment = $1 and number = $2"


async def take_in(connection: Connection, now: datetime) -> None:
    """Take in every revision that is new. The caller's transaction makes it one with what follows
    from it."""
    waiting = await connection.fetch(_WAITING)
    for row in waiting:
        await _take_in(connection, row, now)
    if waiting:
        await backfill(connection)


async def _take_in(connection: Connection, row: asyncpg.Record, now: datetime) -> None:
    record = await store.get_experiment(connection, row["project"], row["key"], lock=True)
    if record is None:
        return
    for metric in map(run_metric, record.definition.metrics):
        await connection.execute(
            _ADD_METRIC,
            record.id,
            record.run,
            metric.key,
            metric.version,
            metric.kind,
            metric.event,
            metric.aggregate,
            metric.cap,
            metric.window,
            metric.block_seconds,
            metric.block_before(row["started_at"]),
        )
    started_at = row["started_at"] if row["analysed_revision"] == 0 else None
    await guard.take_in(connection, record, now, started_at)
    await connection.execute(_TAKEN_IN, record.id, record.run, record.revision)
