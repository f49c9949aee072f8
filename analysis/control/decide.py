"""Decisions on one experiment, within one transaction: the rules in their order.

A decision and what it does (the new epoch) are kept together or not at all, and only while the
leader's term is the one under which the evidence was read; the experiment's row is locked, so its
epoch is as read.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from analysis.control import bandit_rule, guard, health_rule, ramp_rule
from analysis.control.acting import hold, kind_of, perform
from analysis.control.looks import take_look
from analysis.control.ruling import STALE_AFTER, Propensities, Ruling, Situation
from analysis.folding.blocks import Closed, close_blocks, hold_closable
from analysis.folding.fading import follow_fading
from analysis.folding.trails import follow_closed
from analysis.folding.visits import close_visits
from experiments import store
from experiments.allocation import propensities
from experiments.records import ExperimentRecord
from experiments.store import Connection

Consult: TypeAlias = Callable[[Connection, Situation], Awaitable[Sequence[Ruling]]]
RULES: Final[tuple[Consult, ...]] = (
    guard.consult,
    health_rule.consult,
    ramp_rule.consult,
    bandit_rule.consult,
)
"""In the order in which they are asked. Once a rule has acted, the others wait for the next tick:
what they would say was of traffic that is no more."""


class Decided(msgspec.Struct, frozen=True):
    """What was done, by which rule and why, and the experiment as it stands now."""

    kind: str
    rule: str
    code: str
    record: ExperimentRecord


async def decide(
    connection: Connection,
    record: ExperimentRecord,
    *,
    term: int,
    watermark: datetime,
    lateness: timedelta,
    now: datetime,
    clock: datetime | None = None,
) -> list[Decided]:
    """Close what has finished, look at it, and act on it. `record` is locked by the caller.

    Args:
        now: the time that decisions are dated by.
        clock: what the clock says, where that is not the same.
    """
    closed, propensities_of = await _close(connection, record, watermark, lateness, now)
    if record.state not in {"running", "paused"}:
        return []
    situation = Situation(
        record=record,
        term=term,
        watermark=watermark,
        lateness=lateness,
        now=now,
        clock=clock or now,
        stale=now - watermark > STALE_AFTER,
        closed=closed,
        propensities=propensities_of,
    )
    for consult in RULES:
        decided = await _carry_out(connection, situation, await consult(connection, situation))
        if decided:
            return decided
    return []


async def finish_run(
    connection: Connection,
    record: ExperimentRecord,
    run: int,
    *,
    watermark: datetime,
    lateness: timedelta,
    now: datetime,
) -> None:
    """Close what has finished of a run that another one followed: there is nothing left to decide
    on. `record` is locked by the caller.

    Variants, plan and primary metrics are the same in all runs (`experiments/changes.py`).
    """
    of_run = msgspec.structs.replace(record, run=run)
    await _close(connection, of_run, watermark, lateness, now)


async def _close(
    connection: Connection,
    record: ExperimentRecord,
    watermark: datetime,
    lateness: timedelta,
    now: datetime,
) -> tuple[list[Closed], Propensities]:
    """Close what has finished of a run, and take it into all that follows closed blocks."""
    metrics = await hold_closable(connection, record.id, record.run, watermark, lateness)
    closed = await close_blocks(connection, metrics, watermark, lateness)
    visits = await close_visits(connection, metrics, watermark, lateness)
    propensities_of = await _propensities(connection, record, [*closed, *visits])
    await follow_fading(connection, record, closed, propensities_of)
    await follow_closed(connection, record, closed, propensities_of)
    await take_look(connection, record, now)
    return [*closed, *visits], propensities_of


async def _carry_out(
    connection: Connection, situation: Situation, rulings: Sequence[Ruling]
) -> list[Decided]:
    """Do what a rule says, one act after another."""
    record = situation.record
    decided: list[Decided] = []
    for ruling in rulings:
        if ruling.act is None:
            await hold(connection, record, ruling, situation.term, situation.now)
        else:
            record = await perform(connection, record, ruling, situation.term, situation.now)
            decided.append(Decided(kind_of(ruling.act), ruling.rule, ruling.code, record))
    return decided


async def _propensities(
    connection: Connection, record: ExperimentRecord, closed: list[Closed]
) -> Propensities:
    epochs = {epoch for c in closed for _, cells in c.blocks for epoch, _ in cells}
    return {
        number: propensities((await store.get_epoch(connection, record.id, number)).allocation)
        for number in sorted(epochs)
    }
