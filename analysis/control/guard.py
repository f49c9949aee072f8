"""The guard: its ledger of alpha, and what it sees in blocks that closed.

**The ledger.** Every (guardrail, variant) has a share of the guard's alpha. Whoever comes, at the
start or later, is given half of what is unspent, in equal parts; so there is always something left
for a guardrail that is added, the sum never exceeds alpha, and the price is 0.7 of log evidence. A
guardrail whose margin is changed is a new one: its old share stays spent, its evidence starts
afresh, and it sees enrolment blocks from then on only. So alpha may be raised while a run goes on,
but not lowered: what is spent cannot be taken back.

**Generations.** When a hand resumes a variant that was rolled back, or a run that the guard paused,
or overrules an alarm that only alerted, all rows are closed, and all pairs are given shares of a
new alpha. Their evidence begins with the enrolment blocks that begin after that; only what the past
taught for plug-ins is carried over. An alarm of a generation that is over has been overruled, and
never acts again.

**Acts.** An alarm acts once, by the guard's action. A variant that is rolled back is watched no
more; in a paused run the units of before are.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from analysis.control import alpha, health_rule
from analysis.control.alpha import FIRST
from analysis.control.ruling import (
    Act,
    Alert,
    Pause,
    Propensities,
    RollBack,
    RollBackVariant,
    Ruling,
    Situation,
)
from analysis.folding.blocks import Closed
from analysis.folding.metrics import RunMetric, block_of, run_metric
from analysis.inference.evidence import (
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    bound_of,
    start,
    step,
)
from analysis.inference.generations import carried_over
from analysis.inference.kinds import Goal
from analysis.inference.moments import EMPTY, Cells
from experiments import store
from experiments.model import Action, Experiment, Margin, Metric, QuantileMetric
from experiments.records import ExperimentRecord
from experiments.store import Connection

_SEVERITY: Final[Mapping[Action | None, int]] = {
    None: 0,
    "alert": 1,
    "pause": 2,
    "rollback_variant": 3,
    "rollback": 4,
}
"""An alarm acts again only by an action that does more than the one it acted by."""


class LedgerRow(msgspec.Struct, frozen=True):
    """What a (guardrail, variant) was given, and the evidence against it so far. `acted` is what
    was done on it."""

    id: int
    metric: str
    version: str
    variant: str
    alpha: float
    opened_block: int
    rule: GuardRule
    state: GuardState
    generation: int = FIRST
    acted: Action | None = None


class Alarm(msgspec.Struct, frozen=True, tag_field="type", tag="alarm"):
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
    generation: int = FIRST


class Pair(msgspec.Struct, frozen=True):
    """A guardrail and a treatment that it watches, with the rule but for its share of alpha."""

    metric: RunMetric
    variant: str
    goal: Goal
    margin: float
    relative: bool
    quantile: float | None = None

    def rule(self, alpha_share: float) -> GuardRule:
        """The rule that this pair is watched by."""
        return GuardRule(
            kind=self.metric.kind,
            goal=self.goal,
            margin=self.margin,
            alpha_share=alpha_share,
            relative=self.relative,
            quantile=self.quantile,
            repeats=self.metric.scope == "exposure",
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
        Pair(run_metric(metric), variant, metric.goal, *_margin(metric.margin), _level(metric))
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


def _level(metric: Metric) -> float | None:
    return metric.quantile if isinstance(metric, QuantileMetric) else None


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
    generation = await keep_up(connection, record, now)
    wanted = _watched_pairs(record)
    rows = await alpha.open_rows(connection, record.id, record.run)
    held = [_decoded(row) for row in rows if row.metric != health_rule.SAMPLE_RATIO]
    gone = [row.id for row in held if not any(pair.watched_by(row) for pair in wanted)]
    comers = [
        _opening(pair, _opened_block(pair, now, started_at))
        for pair in wanted
        if not any(pair.watched_by(row) for row in held)
    ]
    ratio = [row.id for row in rows if row.metric == health_rule.SAMPLE_RATIO]
    if record.definition.guard.health.sample_ratio.action != "rollback":
        gone += ratio
    elif not ratio:
        comers.append(await health_rule.opening(connection, record))
    await alpha.close_rows(connection, gone, now)
    await alpha.admit(connection, record, generation.number, comers, now)


async def keep_up(
    connection: Connection, record: ExperimentRecord, now: datetime
) -> alpha.Generation:
    """The generation that the guard is in; one that is new is taken in: all rows are closed, and
    fresh ones opened."""
    generation = await alpha.generation_of(connection, record)
    if generation.taken_in or generation.at is None:
        return generation
    past = {
        (row.metric, row.version, row.variant): _decoded(row)
        for row in await alpha.last_rows(connection, record, generation.number)
        if row.metric != health_rule.SAMPLE_RATIO
    }
    held = await alpha.open_rows(connection, record.id, record.run)
    await alpha.close_rows(connection, [row.id for row in held], now)
    comers = []
    for pair in _watched_pairs(record):
        before = past.get((pair.metric.key, pair.metric.version, pair.variant))
        known = before is not None and pair.watched_by(before)
        since = _opened_block(pair, generation.at if known else now)
        comers.append(_opening(pair, since, None if before is None else before.state))
    if record.definition.guard.health.sample_ratio.action == "rollback":
        comers.append(await health_rule.opening(connection, record))
    await alpha.admit(connection, record, generation.number, comers, now)
    await alpha.take_generation_in(connection, record)
    return generation


def _watched_pairs(record: ExperimentRecord) -> list[Pair]:
    return [pair for pair in pairs(record.definition) if pair.variant not in record.rolled_back]


def _opened_block(pair: Pair, now: datetime, started_at: datetime | None = None) -> int:
    """The last enrolment block that a pair does not see that comes now, or with its run."""
    if started_at is None:
        return block_of(now, pair.metric.block_seconds)
    return pair.metric.block_before(started_at)


def _opening(pair: Pair, opened_block: int, before: GuardState | None = None) -> alpha.Opening:
    """How a pair comes to the ledger; with what its state taught `before`, where there is one."""

    def begin(share: float) -> tuple[GuardRule, GuardState]:
        rule = pair.rule(share)
        return rule, start(rule) if before is None else carried_over(rule, before)

    metric = pair.metric
    return alpha.Opening(metric.key, metric.version, pair.variant, opened_block, begin)


async def watch(
    connection: Connection,
    record: ExperimentRecord,
    closed: Sequence[Closed],
    propensities: Propensities,
) -> list[tuple[LedgerRow, Alarm]]:
    """Take the blocks that closed into the evidence; all alarms, in the order of the ledger.

    Args:
        propensities: of all epochs that the closed blocks name.
    """
    closed_of = {(c.metric.key, c.metric.version): [c] for c in closed}
    control = record.definition.control.key
    found = []
    for row in await read_ledger(connection, record.id, record.run):
        of_metric = closed_of.get((row.metric, row.version), ())
        seen, state = follow(row, of_metric, control, propensities)
        if seen:
            await alpha.keep_state(connection, row.id, state)
        if alarms(row.rule, state):
            found.append((row, alarm_of(row, seen, state)))
    return found


def follow(
    row: LedgerRow, closed: Iterable[Closed], control: str, propensities: Propensities
) -> tuple[list[tuple[BlockCell, ...]], GuardState]:
    """What a row of the ledger sees in the closed blocks of its metric, and its evidence then."""
    seen = [
        _block_cells(of_metric, block, cells, control, row.variant, propensities)
        for of_metric in closed
        for block, cells in of_metric.blocks
        if block > row.opened_block
    ]
    state = row.state
    for block_cells in seen:
        state = step(row.rule, state, block_cells)
    return seen, state


def alarm_of(
    row: LedgerRow, blocks: Sequence[tuple[BlockCell, ...]], state_after: GuardState
) -> Alarm:
    """A row whose evidence has reached its share of alpha, with what led there."""
    return Alarm(
        guardrail=row.metric,
        version=row.version,
        variant=row.variant,
        rule=row.rule,
        state_before=row.state,
        blocks=tuple(blocks),
        state_after=state_after,
        log_peak=state_after.log_peak,
        log_threshold=-math.log(row.rule.alpha_share),
        generation=row.generation,
    )


async def consult(connection: Connection, situation: Situation) -> Sequence[Ruling]:
    """What the guard says: nothing, while there is no evidence of harm."""
    record, now = situation.record, situation.now
    await keep_up(connection, record, now)
    await _close_rows_of(connection, record, record.rolled_back, now)
    alarming = await watch(connection, record, situation.closed, situation.propensities)
    action = record.definition.guard.action
    new = [(row, alarm) for row, alarm in alarming if _SEVERITY[row.acted] < _SEVERITY[action]]
    await alpha.note_act(connection, [row.id for row, _ in new], action)
    if new and action == "pause":
        await store.note_guard_pause(connection, record)
    if action == "rollback_variant":
        await _close_rows_of(connection, record, {alarm.variant for _, alarm in new}, now)
    return respond(action, [alarm for _, alarm in new])


async def _close_rows_of(
    connection: Connection, record: ExperimentRecord, variants: Collection[str], now: datetime
) -> None:
    """Close what watches variants that are rolled back: they have no units to come."""
    if not variants:
        return
    rows = await alpha.open_rows(connection, record.id, record.run)
    await alpha.close_rows(connection, [row.id for row in rows if row.variant in variants], now)


def respond(action: Action, new: Iterable[Alarm]) -> list[Ruling]:
    """What is done about alarms that are new: one act for each variant, the first of its alarms
    being the reason; an alert for each alarm."""
    rulings = []
    told: set[str] = set()
    for alarm in new:
        if action != "alert" and alarm.variant in told:
            continue
        told.add(alarm.variant)
        reason = (
            f"guardrail {alarm.guardrail} of {alarm.variant}: evidence of harm "
            f"e^{alarm.log_peak:.2f} reached its threshold e^{alarm.log_threshold:.2f}"
        )
        if bound_of(alarm.rule) == "approximate":
            reason += "; the bound is approximate, since units come again"
        rulings.append(Ruling("guard", "harm", reason, _act(action, alarm.variant), alarm))
    return rulings


def _act(action: Action, variant: str) -> Act:
    match action:
        case "rollback":
            return RollBack()
        case "rollback_variant":
            return RollBackVariant(variant)
        case "pause":
            return Pause()
        case "alert":
            return Alert()


def recompute(alarm: Alarm) -> GuardState:
    """The evidence of an alarm, computed again from what was stored with it."""
    state = alarm.state_before
    for cells in alarm.blocks:
        state = step(alarm.rule, state, cells)
    return state


def _block_cells(
    closed: Closed,
    block: int,
    cells: Cells,
    control: str,
    variant: str,
    propensities: Propensities,
) -> tuple[BlockCell, ...]:
    values = closed.histograms.get(block, {})
    return tuple(
        BlockCell(
            block=block,
            epoch=epoch,
            propensity_control=propensities[epoch].get(control, 0.0),
            propensity_treatment=propensities[epoch].get(variant, 0.0),
            control=cells.get((epoch, control), EMPTY),
            treatment=cells.get((epoch, variant), EMPTY),
            control_buckets=values.get((epoch, control), ()),
            treatment_buckets=values.get((epoch, variant), ()),
        )
        for epoch in sorted({epoch for epoch, _ in cells})
    )


async def read_ledger(connection: Connection, experiment: int, run: int) -> list[LedgerRow]:
    """The open rows of guardrails in a run's ledger, in the order of their opening."""
    rows = await alpha.open_rows(connection, experiment, run)
    return [_decoded(row) for row in rows if row.metric != health_rule.SAMPLE_RATIO]


async def read_withdrawn(connection: Connection, record: ExperimentRecord) -> list[LedgerRow]:
    """The last rows of what watched the variants that are rolled back."""
    if not record.rolled_back:
        return []
    watched = {(pair.metric.key, pair.metric.version) for pair in pairs(record.definition)}
    generation = await alpha.generation_of(connection, record)
    return [
        _decoded(row)
        for row in await alpha.last_rows(connection, record, generation.number + 1)
        if row.variant in record.rolled_back and (row.metric, row.version) in watched
    ]


def _decoded(row: alpha.Row) -> LedgerRow:
    return LedgerRow(
        id=row.id,
        metric=row.metric,
        version=row.version,
        variant=row.variant,
        alpha=row.alpha,
        opened_block=row.opened_block,
        rule=msgspec.json.decode(row.rule, type=GuardRule),
        state=msgspec.json.decode(row.state, type=GuardState),
        generation=row.generation,
        acted=row.acted,
    )
