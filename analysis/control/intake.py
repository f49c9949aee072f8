"""Takes a run's definition in: the metrics that folding computes and the pairs that the guard
watches. Done once for each revision, before the events are folded."""

import logging
from datetime import datetime

import asyncpg
import msgspec

from analysis.control import guard
from analysis.folding.caps import note_caps, read_caps, resolve_caps
from analysis.folding.metrics import add_metric, run_metric
from analysis.folding.position import hold_moments
from analysis.folding.segments import know_attributes
from experiments import store
from experiments.store import Connection

logger = logging.getLogger(__name__)

_WAITING = """
    select x.id, x.project, x.key, r.started_at, r.analysed_revision, r.enrolments
    from experiment x join run r on r.experiment = x.id and r.number = x.run
    where r.analysed_revision <> x.revision
      and (x.state in ('running', 'paused') or r.analysed_revision <= 0)
    order by x.id
"""
_TAKEN_IN = "update run set analysed_revision = $3 where experiment = $1 and number = $2"


async def take_in(connection: Connection, now: datetime) -> None:
    """Take in every revision that is new. The caller's transaction makes it one with what follows
    from it.

    A metric that a revision drops goes on being folded: it may come back, and its report stays
    true. One that is new, or changed, is filled in by a backfill, as is one whose cap at a quantile
    can be resolved by now.
    """
    await hold_moments(connection)
    await resolve_caps(connection, now)
    for row in await connection.fetch(_WAITING):
        await _take_in(connection, row, now)


async def _take_in(connection: Connection, row: asyncpg.Record, now: datetime) -> None:
    try:
        record = await store.get_experiment(connection, row["project"], row["key"], lock=True)
    except msgspec.ValidationError as error:
        # A newer release wrote it; it waits for a worker that can read it, and the others do not.
        names = {"project": row["project"], "experiment": row["key"]}
        logger.error("definition not taken in", extra={**names, "error": str(error)})
        return
    if record is None:
        return
    covered = 0 if row["enrolments"] else None
    await note_caps(connection, record.id, record.run, record.definition)
    definition = await read_caps(connection, record.id, record.run, record.definition)
    record = msgspec.structs.replace(record, definition=definition)
    started_at = row["started_at"] if row["analysed_revision"] == 0 else None
    for metric in map(run_metric, definition.metrics):
        # What units did before a metric of visits joins, it does not see.
        joins = metric.scope == "exposure" and started_at is None
        since = now if joins else row["started_at"]
        await add_metric(connection, record.id, record.run, metric, since, covered)
    await know_attributes(connection, record.id, record.run, row["analysed_revision"])
    await guard.take_in(connection, record, now, started_at)
    await connection.execute(_TAKEN_IN, record.id, record.run, record.revision)
