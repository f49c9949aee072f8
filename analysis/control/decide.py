"""Decisions on one experiment, within one transaction: looks that are due, guard, then bandit.

A decision and what it does (the new epoch) are kept together or not at all, and only while the
leader's term is the one under which the evidence was read; the experiment's row is locked, so its
epoch is as read.
"""

from datetime import datetime, timedelta
from typing import Final

import msgspec

from analysis.control import guard
from analysis.control.looks import take_look
from analysis.folding.blocks import Closed, close_blocks
from analysis.folding.cells import CLOSED
from analysis.folding.metrics import run_metric
from analysis.folding.totals import read_total
from analysis.folding.trails import follow_closed
from analysis.inference.bandit import Inputs, Reallocation, propose
from experiments import lifecycle, store
from experiments.allocation import propensities, traffic_of
from experiments.lifecycle import Change
from experiments.model import ThompsonPolicy
from experiments.records import ExperimentRecord
from experiments.store import Connection

ACTOR: Final = "controller"
_METRIC = """
    select id from run_metric
    where experiment = $1 and run = $2 and key = $3 and version = $4 and covered is null
"""


class Decided(msgspec.Struct, frozen=True):
    """What was done: the kind of the decision, and the experiment as it stands now."""

    kind: str
    record: ExperimentRecord


async def decide(
    connection: Connection,
    record: ExperimentRecord,
    *,
    term: int,
    watermark: datetime,
    lateness: timedelta,
    now: datetime,
    bandit_due: bool,
) -> Decided | None:
    """Close what has finished, look at it, and act on it. `record` is locked by the caller."""
    closed = await close_blocks(connection, record.id, record.run, watermark, lateness)
    propensities_of = await _propensities(connection, record, closed)
    await follow_closed(connection, record, closed, propensities_of)
    await take_look(connection, record, now)
    if record.state not in {"running", "paused"}:
        return None
    alarm = await guard.watch(connection, record, closed, propensities_of)
    if alarm is not None:
        return await _roll_back(connection, record, alarm, term, now)
    if record.state == "running" and bandit_due:
        return await _reallocate(connection, record, term, now)
    return None


async def _propensities(
    connection: Connection, record: ExperimentRecord, closed: list[Closed]
) -> guard.Propensities:
    epochs = {epoch for c in closed for _, cells in c.blocks for epoch, _ in cells}
    return {
        number: propensities((await store.get_epoch(connection, record.id, number)).allocation)
        for number in sorted(epochs)
    }


async def _roll_back(
    connection: Connection, record: ExperimentRecord, alarm: guard.Alarm, term: int, now: datetime
) -> Decided:
    reason = (
        f"guardrail {alarm.guardrail} of {alarm.variant}: evidence of harm "
        f"e^{alarm.log_peak:.2f} reached its threshold e^{alarm.log_threshold:.2f}"
    )
    decision = await store.insert_decision(
        connection, record, "rollback", record.epoch + 1, now, ACTOR, reason, alarm, term
    )
    change = Change(ACTOR, reason, now)
    return Decided("rollback", await lifecycle.roll_back(connection, record, change, decision))


async def _reallocate(
    connection: Connection, record: ExperimentRecord, term: int, now: datetime
) -> Decided | None:
    proposal = await _propose(connection, record)
    if proposal is None:
        return None
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    split = await lifecycle.plan_split(
        connection, record, proposal.weights, traffic_of(epoch.allocation)
    )
    if split is None:
        return None
    best = max(proposal.probability_best, key=lambda v: proposal.probability_best[v])
    reason = (
        f"thompson on {proposal.inputs.metric}: {best} is best with probability "
        f"{proposal.probability_best[best]:.3f}"
    )
    decision = await store.insert_decision(
        connection, record, "reallocate", record.epoch + 1, now, ACTOR, reason, proposal, term
    )
    change = Change(ACTOR, reason, now)
    return Decided(
        "reallocate",
        await lifecycle.open_epoch(connection, record, record.state, split, change, decision),
    )


async def _propose(connection: Connection, record: ExperimentRecord) -> Reallocation | None:
    policy = record.definition.policy
    if not isinstance(policy, ThompsonPolicy):
        return None
    definition = next(m for m in record.definition.metrics if m.key == policy.metric)
    metric = run_metric(definition)
    number = await connection.fetchval(_METRIC, record.id, record.run, metric.key, metric.version)
    if number is None:
        return None
    finished = await read_total(connection, number, CLOSED)
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    shares = propensities(epoch.allocation)
    variants = record.definition.weights
    return propose(
        Inputs(
            metric=metric.key,
            version=metric.version,
            kind=metric.kind,
            goal=definition.goal,
            floor=policy.floor,
            warmup=policy.warmup,
            max_step=policy.max_step,
            finished=finished.together,
            weights={variant: shares.get(variant, 0.0) for variant in variants},
        )
    )
