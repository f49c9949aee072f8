"""Reads what a report is made from: sums, counts and the ledger; never events, nor epochs."""

import math
from datetime import datetime, timedelta

import msgspec

from analysis.control import alpha
from analysis.control.guard import read_ledger, read_withdrawn
from analysis.control.looks import read_looks
from analysis.folding.caps import read_caps
from analysis.folding.cells import ALL, CLOSED
from analysis.folding.enrol import read_unit_sums
from analysis.folding.health import read_health
from analysis.folding.histogram import read_bins
from analysis.folding.metrics import run_metric
from analysis.folding.segments import read_segments
from analysis.folding.trails import read_trails
from analysis.inference.epoch_sums import Population
from analysis.inference.evidence import alarms, bound_of
from analysis.reports.model import LATENESS, Facts, GuardView, MetricFacts
from experiments import store
from experiments.model import MeanMetric
from experiments.records import ExperimentRecord
from experiments.store import Connection

_RUN = "select started_at, enrolments from run where experiment = $1 and number = $2"
_WITHDRAWN = """
    select v.variant, e.reason, coalesce(d.rule = 'guard', false) as by_guard
    from variant_rollback v
    join epoch e on e.experiment = v.experiment and e.number = v.epoch
    left join decision d on d.id = e.decision
    where v.experiment = $1 and v.run = $2 and v.variant = any($3)
"""
_BY_GUARD = "select rule = 'guard' from decision where id = $1"
_WATERMARK = "select nullif(watermark, '-infinity') from fold_position"
_METRICS = """
    select m.id, m.key, m.version, m.kind, m.late, m.covered, m.since, t.block, t.sums
    from run_metric m left join metric_total t on t.metric = m.id and t.segment = 0
    where m.experiment = $1 and m.run = $2
"""


async def read_facts(
    connection: Connection,
    record: ExperimentRecord,
    now: datetime | None = None,
    lateness: timedelta = LATENESS,
    *,
    broken_down: bool = True,
) -> Facts:
    """All that the report of the current run is made from.

    It is many reads: a transaction in which `record` was read, too, makes them of one moment.

    Args:
        now: when it is read; None where what has stopped arriving is not to be judged by it.
        lateness: how late the controller lets an outcome come before it closes a block.
        broken_down: whether the sums of segments are wanted, for breakdowns.
    """
    definition = await read_caps(connection, record.id, record.run, record.definition)
    record = msgspec.structs.replace(record, definition=definition)
    rolled_back = None
    withdrawn, by_guard = await _withdrawn(connection, record)
    if record.epoch:
        epoch = await store.get_epoch(connection, record.id, record.epoch)
        rolled_back = epoch.reason if epoch.state == "rolled_back" else None
        if rolled_back is not None and await connection.fetchval(_BY_GUARD, epoch.decision):
            by_guard = frozenset(record.definition.weights)
    run = await connection.fetchrow(_RUN, record.id, record.run)
    enrolled = await read_unit_sums(connection, record.id, record.run)
    enrolments = 0 if run is None else run["enrolments"]
    metrics = await _metrics(
        connection,
        record,
        enrolments,
        reallocated=enrolled.reallocated,
        broken_down=broken_down,
    )
    return Facts(
        project=record.project,
        key=record.key,
        state=record.state,
        run=record.run,
        epoch=record.epoch,
        definition=record.definition,
        ship=record.ship,
        started_at=None if run is None else run["started_at"],
        watermark=await connection.fetchval(_WATERMARK),
        rolled_back=rolled_back,
        enrolled=enrolled,
        metrics=metrics,
        guard=await _guard(connection, record),
        health=await read_health(connection, record.id, record.run),
        now=now,
        lateness=lateness,
        generation=(await alpha.generation_of(connection, record)).number,
        withdrawn=withdrawn,
        by_guard=by_guard,
    )


async def _withdrawn(
    connection: Connection, record: ExperimentRecord
) -> tuple[dict[str, str], frozenset[str]]:
    """Why the variants were rolled back that are, in the order of the definition; and which of them
    the guard rolled back."""
    if not record.rolled_back:
        return {}, frozenset()
    rows = await connection.fetch(_WITHDRAWN, record.id, record.run, record.rolled_back)
    reasons = {row["variant"]: row["reason"] for row in rows}
    by_guard = frozenset(row["variant"] for row in rows if row["by_guard"])
    return {variant: reasons[variant] for variant in record.rolled_back}, by_guard


async def _metrics(
    connection: Connection,
    record: ExperimentRecord,
    enrolments: int,
    *,
    reallocated: bool,
    broken_down: bool,
) -> dict[str, MetricFacts]:
    caps = {m.key: m.cap if isinstance(m, MeanMetric) else None for m in record.definition.metrics}
    wanted = {(m.key, m.version) for m in map(run_metric, record.definition.metrics)}
    segments = await read_segments(connection, record.id, record.run) if broken_down else {}
    trails = await read_trails(connection, record.id, record.run)
    looks = await read_looks(connection, record.id, record.run)
    found: dict[str, MetricFacts] = {}
    for row in await connection.fetch(_METRICS, record.id, record.run):
        if (row["key"], row["version"]) not in wanted:
            continue
        facts = found.get(row["key"])
        if facts is None:
            covered = row["covered"]
            compares_values = row["kind"] == "quantile" and not reallocated
            facts = MetricFacts(
                late=row["late"],
                since=row["since"],
                backfill=None if covered is None else covered / max(enrolments, 1),
                segments=segments.get(row["id"], {}),
                trails=trails.get(row["id"], {}),
                looks=looks.get(row["key"], {}),
                cap=caps[row["key"]],
                values=await read_bins(connection, row["id"], ALL) if compares_values else {},
                finished_values=(
                    await read_bins(connection, row["id"], CLOSED) if compares_values else {}
                ),
            )
        if row["sums"] is not None:
            sums = msgspec.json.decode(row["sums"], type=Population)
            name = "finished" if row["block"] == CLOSED else "everyone"
            facts = msgspec.structs.replace(facts, **{name: sums})
        found[row["key"]] = facts
    return found


async def _guard(connection: Connection, record: ExperimentRecord) -> tuple[GuardView, ...]:
    """The evidence of what is watched, and of what was until its variant was rolled back."""
    open_rows = await read_ledger(connection, record.id, record.run)
    closed = {row.id: row for row in await read_withdrawn(connection, record)}
    rows = [*({row.id: row for row in open_rows} | closed).values()]
    return tuple(
        GuardView(
            guardrail=row.metric,
            variant=row.variant,
            goal=row.rule.goal,
            margin=row.rule.margin,
            relative=row.rule.relative,
            alpha_share=row.alpha,
            bound=bound_of(row.rule),
            log_peak=row.state.log_peak,
            log_threshold=-math.log(row.rule.alpha_share),
            units=row.state.units,
            alarm=alarms(row.rule, row.state),
        )
        for row in rows
    )
