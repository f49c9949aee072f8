"""Reads what a report is made from: cells, counts and the ledger; never events."""

import math
from collections import defaultdict

import msgspec

from analysis.evidence import alarms, is_exact
from analysis.fold import COMPACTED, moments_of
from analysis.guard import read_ledger
from analysis.metrics import run_metric
from analysis.moments import EMPTY, Moments, merge
from analysis.report import EpochUnits, Facts, GuardView, MetricCells
from experiments import store
from experiments.allocation import Allocation, propensities
from experiments.records import ExperimentRecord
from experiments.store import Connection

_RUN = "select started_at from run where experiment = $1 and number = $2"
_WATERMARK = "select nullif(watermark, '-infinity') from fold_position"
_ENROLLED = """
    select c.epoch, c.variant, c.units, c.several, e.allocation
    from enrolled c join epoch e on e.experiment = c.experiment and e.number = c.epoch
    where c.experiment = $1 and c.run = $2 and c.units > 0 order by c.epoch, c.variant
"""
_CELLS = """
    select epoch, variant, block, n, mean, m2 from cell
    where experiment = $1 and run = $2 and metric = $3 and version = $4
    order by block
"""
_LATE = """
    select late from run_metric where experiment = $1 and run = $2 and key = $3 and version = $4
"""


async def read_facts(connection: Connection, record: ExperimentRecord) -> Facts:
    """All that the report of the current run is made from.

    It is many reads: a transaction in which `record` was read, too, makes them of one moment.
    """
    rolled_back = None
    if record.epoch:
        epoch = await store.get_epoch(connection, record.id, record.epoch)
        rolled_back = epoch.reason if epoch.state == "rolled_back" else None
    return Facts(
        project=record.project,
        key=record.key,
        state=record.state,
        run=record.run,
        epoch=record.epoch,
        definition=record.definition,
        ship=record.ship,
        started_at=await connection.fetchval(_RUN, record.id, record.run),
        watermark=await connection.fetchval(_WATERMARK),
        rolled_back=rolled_back,
        epochs=await _epochs(connection, record),
        metrics={
            metric.key: await _metric_cells(connection, record, metric.key, metric.version)
            for metric in map(run_metric, record.definition.metrics)
        },
        guard=await _guard(connection, record),
    )


async def _epochs(connection: Connection, record: ExperimentRecord) -> tuple[EpochUnits, ...]:
    found: dict[int, EpochUnits] = {}
    for row in await connection.fetch(_ENROLLED, record.id, record.run):
        epoch = found.get(row["epoch"])
        if epoch is None:
            allocation = msgspec.json.decode(row["allocation"], type=Allocation)
            epoch = EpochUnits(row["epoch"], {}, {}, propensities(allocation))
            found[row["epoch"]] = epoch
        epoch.units[row["variant"]] = row["units"]
        epoch.several[row["variant"]] = row["several"]
    return tuple(found.values())


async def _metric_cells(
    connection: Connection, record: ExperimentRecord, key: str, version: str
) -> MetricCells:
    finished: dict[tuple[int, str], Moments] = {}
    unfinished: dict[tuple[int, str], Moments] = defaultdict(lambda: EMPTY)
    for row in await connection.fetch(_CELLS, record.id, record.run, key, version):
        place = (row["epoch"], row["variant"])
        if row["block"] == COMPACTED:
            finished[place] = moments_of(row)
        else:
            unfinished[place] = merge(unfinished[place], moments_of(row))
    late = await connection.fetchval(_LATE, record.id, record.run, key, version)
    return MetricCells(finished, dict(unfinished), late or 0)


async def _guard(connection: Connection, record: ExperimentRecord) -> tuple[GuardView, ...]:
    return tuple(
        GuardView(
            guardrail=row.metric,
            variant=row.variant,
            goal=row.rule.goal,
            margin=row.rule.margin,
            relative=row.rule.relative,
            alpha_share=row.alpha,
            exact=is_exact(row.rule),
            log_peak=row.state.log_peak,
            log_threshold=-math.log(row.rule.alpha_share),
            units=row.state.units,
            alarm=alarms(row.rule, row.state),
        )
        for row in await read_ledger(connection, record.id, record.run)
    )
