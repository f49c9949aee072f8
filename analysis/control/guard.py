"""The guard: its ledger of alpha, and what it sees in blocks that closed.

**The ledger.** Every (guardrail, variant) has a share of the guard's alpha. Whoever comes, at the
start or later, is given half of what is unspent, in equal parts; so there is always something left
for a guardrail that is added, the sum never exceeds alpha, and the price is 0.7 of log evidence. A
guardrail whose margin is changed is a new one: its old share stays spent, its evidence starts
afresh, and it sees enrolment blocks from then on only. So alpha may be raised while a run goes on,
but not lowered: what is spent cannot be taken back.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from analysis.folding.blocks import Closed
from analysis.folding.metrics import RunMetric, block_of, run_metric
from analysis.inference.evidence import (
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    start,
    step,
)
from analysis.inference.kinds import Goal
from analysis.inference.moments import EMPTY, Cells
from experiments.model import Experiment, Margin
from experiments.records import ExperimentRecord
from experiments.store import Connection

_OPEN_ROWS = """
    select id, metric, version, variant, alpha, opened_block, rule, state from guard_ledger
    where experiment = $1 and run = $2 and closed_at is null order by id
"""
_SPENT = """
    select coalesce(sum(alpha), 0) as alpha, min(alpha) as least from guard_ledger
    where experiment = $1 and run = $2 and generation = $3
"""
_CLOSE_ROW = "update guard_ledger set closed_at = $2 where id = $1"
_OPEN_ROW = """
    insert into guard_ledger (experiment, run, generation, metric, version, variant, alpha,
                              opened_block, opened_at, rule, state)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_KEEP_STATE = "update guard_ledger set state = $2 where id = $1"
GENERATION: Final = 1
_EXHAUSTED: Final = 1e-9

Propensities = Mapping[int, Mapping[str, float]]
"""The propensity of each variant, by epoch."""


class LedgerRow(msgspec.Struct, frozen=True):
    """What a (guardrail, variant) was given, and the evidence against it so far."""

    id: int
    metric: str
    version: str
    variant: str
    alpha: float
    opened_block: int
    rule: GuardRule
    state: GuardState


class Alarm(msgspec.Struct, frozen=True):
    """Evidence of harm that reached its share of alpha, and all that is needed to compute it again:
    `step` over `blocks`, one after another, leads from `state_before` to `state_after`."""

    guardrail: str
    version: str
    variant: str
    rule: GuardRule
    state_before: GuardState
    blocks: tuple[tuple[BlockCell, ...], ...]
    state_after: GuardState
    log_peak: float
    log_threshold: float


class Pair(msgspec.Struct, frozen=True):
    """A guardrail and a treatment that it watches, with the rule but for its share of alpha."""

    metric: RunMetric
    variant: str
    goal: Goal
    margin: float
    relative: bool

    def rule(self, alpha_share: float) -> GuardRule:
        """The rule that this pair is watched by."""
        return GuardRule(
            kind=self.metric.kind,
            goal=self.goal,
            margin=self.margin,
            alpha_share=alpha_share,
            relative=self.relative,
        )

    def watched_by(self, row: LedgerRow) -> bool:
        """Whether this row of the ledger watches this pair by this rule."""
        same = (row.metric, row.version, row.variant) == (
            self.metric.key,
            self.metric.version,
            self.variant,
        )
        return same and row.rule == self.rule(row.rule.alpha_share)


def pairs(definition: Experiment) -> list[Pair]:
    """All that the guard of an experiment watches."""
    control = definition.control.key
    return [
        Pair(run_metric(metric), variant, metric.goal, *_margin(metric.margin))
        for metric in definition.metrics
        if metric.role == "guardrail"
        for variant in definition.weights
        if variant != control
    ]


def _margin(margin: Margin | None) -> tuple[float, bool]:
    if margin is None:
        return 0.0, False
    if margin.relative is not None:
        return margin.relative, True
    return margin.absolute or 0.0, False


async def take_in(
    connection: Connection,
    record: ExperimentRecord,
    now: datetime,
    started_at: datetime | None = None,
) -> None:
    """Bring the ledger of a run in line with its definition.

    Args:
        started_at: when the run started, for the guardrails that it starts with: they see all of
            its blocks. Without it, those that are new see the blocks that begin from now on: a
            margin that was chosen after a look at the data is not tested on them.
    """
    wanted = pairs(record.definition)
    rows = await read_ledger(connection, record.id, record.run)
    for row in rows:
        if not any(pair.watched_by(row) for pair in wanted):
            await connection.execute(_CLOSE_ROW, row.id, now)
    new = [pair for pair in wanted if not any(pair.watched_by(row) for row in rows)]
    if new:
        spent = await connection.fetchrow(_SPENT, record.id, record.run, GENERATION)
        assert spent is not None, "a sum has a row"  # noqa: S101 - an invariant
        share = _share(record.definition.guard.alpha, len(new), *spent)
        await connection.executemany(
            _OPEN_ROW, [_opening(record, pair, share, now, started_at) for pair in new]
        )


def _share(alpha: float, pairs: int, spent: float, least: float | None) -> float:
    """What each of the pairs that come is given. After some thirty changes a difference of floats
    says no more what is unspent; then a third of the least share so far is surely less than that.
    """
    unspent = alpha - spent
    if least is None or unspent > _EXHAUSTED * alpha:
        return unspent / 2 / pairs
    return max(least / 3 / pairs, sys.float_info.min)


def _opening(
    record: ExperimentRecord,
    pair: Pair,
    share: float,
    now: datetime,
    started_at: datetime | None,
) -> tuple[object, ...]:
    rule = pair.rule(share)
    metric = pair.metric
    if started_at is None:
        opened_block = block_of(now, metric.block_seconds)
    else:
        opened_block = metric.block_before(started_at)
    return (
        record.id,
        record.run,
        GENERATION,
        metric.key,
        metric.version,
        pair.variant,
        share,
        opened_block,
        now,
        msgspec.json.encode(rule).decode(),
        msgspec.json.encode(start(rule)).decode(),
    )


async def watch(
    connection: Connection,
    record: ExperimentRecord,
    closed: Sequence[Closed],
    propensities: Propensities,
) -> Alarm | None:
    """Take the blocks that closed into the evidence; the first alarm, in the order of the ledger.

    Args:
        propensities: of all epochs that the closed blocks name.
    """
    blocks_of = {(c.metric.key, c.metric.version): c.blocks for c in closed}
    control = record.definition.control.key
    alarm = None
    for row in await read_ledger(connection, record.id, record.run):
        seen = [
            _block_cells(block, cells, control, row.variant, propensities)
            for block, cells in blocks_of.get((row.metric, row.version), ())
            if block > row.opened_block
        ]
        if not seen:
            continue
        state = row.state
        for block_cells in seen:
            state = step(row.rule, state, block_cells)
        await connection.execute(_KEEP_STATE, row.id, msgspec.json.encode(state).decode())
        if alarm is None and alarms(row.rule, state):
            alarm = Alarm(
                guardrail=row.metric,
                version=row.version,
                variant=row.variant,
                rule=row.rule,
                state_before=row.state,
                blocks=tuple(seen),
                state_after=state,
                log_peak=state.log_peak,
                log_threshold=-math.log(row.rule.alpha_share),
            )
    return alarm


def recompute(alarm: Alarm) -> GuardState:
    """The evidence of an alarm, computed again from what was stored with it."""
    state = alarm.state_before
    for cells in alarm.blocks:
        state = step(alarm.rule, state, cells)
    return state


def _block_cells(
    block: int, cells: Cells, control: str, variant: str, propensities: Propensities
) -> tuple[BlockCell, ...]:
    return tuple(
        BlockCell(
            block=block,
            epoch=epoch,
            propensity_control=propensities[epoch].get(control, 0.0),
            propensity_treatment=propensities[epoch].get(variant, 0.0),
            control=cells.get((epoch, control), EMPTY),
            treatment=cells.get((epoch, variant), EMPTY),
        )
        for epoch in sorted({epoch for epoch, _ in cells})
    )


async def read_ledger(connection: Connection, experiment: int, run: int) -> list[LedgerRow]:
    """The open rows of a run's ledger, in the order of their opening."""
    return [
        LedgerRow(
            id=row["id"],
            metric=row["metric"],
            version=row["version"],
            variant=row["variant"],
            alpha=row["alpha"],
            opened_block=row["opened_block"],
            rule=msgspec.json.decode(row["rule"], type=GuardRule),
            state=msgspec.json.decode(row["state"], type=GuardState),
        )
        for row in await connection.fetch(_OPEN_ROWS, experiment, run)
    ]
