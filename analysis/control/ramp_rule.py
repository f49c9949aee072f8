"""The ramp as a rule: what it reads at a tick, and what it stores of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from analysis.control.guard import LedgerRow, read_ledger
from analysis.control.ramp import Observed, Outcome, RampEvidence, Watched, reason, step
from analysis.control.ruling import Advance, Ruling, Situation
from analysis.folding.blocks import Closed
from analysis.inference.evidence import alarms
from experiments import lifecycle, ramps, store
from experiments.allocation import counts
from experiments.model import RampPolicy
from experiments.problems import ProblemError
from experiments.ramp import RampState, current_step
from experiments.records import ExperimentRecord
from experiments.store import Connection

_FINDINGS: Final = "select name from health_finding where experiment = $1 and run = $2 order by 1"
MOST_ARRIVALS: Final = 50_000
"""Enrolments that are looked at in a tick; the rest is for the next ones."""

# Ordinals are given in the order in which enrolments are folded: who met the step before, and was
# shipped late, has one of this step.
_ARRIVALS: Final = """
    select count(*) as arrived, max(e.at) as last
    from enrolment e join arm a on a.id = e.arm
    where e.experiment = $1 and e.run = $2 and e.ordinal >= $3 and e.ordinal < $4
      and a.epoch >= $5
"""


async def consult(connection: Connection, situation: Situation) -> Sequence[Ruling]:
    """What the ramp says, where there is one."""
    record, policy = situation.record, situation.record.definition.policy
    if not isinstance(policy, RampPolicy):
        return ()
    state = await ramps.read(connection, record.id, record.run)
    if state is None:
        return ()
    observed = await observe(
        connection, record, state, situation.closed, now=situation.now, stale=situation.stale
    )
    outcome, observed = await rule(connection, record, state, observed)
    if outcome.state != state:
        await ramps.keep(connection, record.id, record.run, outcome.state)
    act = None
    if outcome.code == "advance":
        act = Advance(outcome.state.step, current_step(policy, outcome.state).traffic)
    evidence = RampEvidence(policy, state, observed, outcome)
    return (Ruling("ramp", outcome.code, reason(policy, outcome, observed), act, evidence),)


async def rule(
    connection: Connection, record: ExperimentRecord, state: RampState, observed: Observed
) -> tuple[Outcome, Observed]:
    """What the ramp does, and what it was told: that there are slots for the next step, too."""
    policy = record.definition.policy
    assert isinstance(policy, RampPolicy), "its caller looked"  # noqa: S101 - an invariant
    outcome = step(policy, state, observed)
    if outcome.code == "advance":
        try:
            traffic = current_step(policy, outcome.state).traffic
            await lifecycle.plan_traffic(connection, record, traffic)
        except ProblemError as error:
            what = ", ".join(problem.detail for problem in error.errors)
            observed = msgspec.structs.replace(observed, released=what or error.detail)
            outcome = step(policy, state, observed)
    return outcome, observed


async def observe(
    connection: Connection,
    record: ExperimentRecord,
    state: RampState,
    closed: Sequence[Closed],
    *,
    now: datetime,
    stale: bool,
) -> Observed:
    """What a ramp is told.

    Args:
        closed: the blocks that closed just now, which nobody is told of again.
        stale: whether the moments are too old to give traffic by.
    """
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    control = record.definition.control.key
    treatments = [key for key in counts(epoch.allocation) if key != control]
    ledger = await read_ledger(connection, record.id, record.run)
    found = await connection.fetch(_FINDINGS, record.id, record.run)
    enrolled = await ramps.enrolled(connection, record.id, record.run)
    through, arrived, last = await _arrivals(connection, record, state, enrolled)
    return Observed(
        now=now,
        epoch=record.epoch,
        enrolled=enrolled,
        looked_through=through,
        arrived=arrived,
        last_arrival=last,
        watched=watched_of(record, state, treatments, ledger, closed),
        has_treatment=bool(treatments),
        findings=tuple(row["name"] for row in found),
        stale=stale,
        experiment_paused=record.state == "paused",
    )


def watched_of(
    record: ExperimentRecord,
    state: RampState,
    treatments: Sequence[str],
    ledger: Sequence[LedgerRow],
    closed: Sequence[Closed],
) -> tuple[Watched, ...]:
    """What gates a step: each guardrail of each variant that has traffic. One that the ledger does
    not know yet gates it, too."""
    control = record.definition.control.key
    rows = {(row.metric, row.variant): row for row in ledger}
    found = []
    for metric in record.definition.metrics:
        for variant in treatments if metric.role == "guardrail" else ():
            row = rows.get((metric.key, variant))
            units = (0, 0) if row is None else _units_within(row, state, closed, control)
            found.append(
                Watched(
                    guardrail=metric.key,
                    variant=variant,
                    row=None if row is None else row.id,
                    control=units[0],
                    treatment=units[1],
                    bets=row is not None and row.state.blocks > 0,
                    alarmed=row is not None and alarms(row.rule, row.state),
                )
            )
    return tuple(found)


def _units_within(
    row: LedgerRow, state: RampState, closed: Sequence[Closed], control: str
) -> tuple[int, int]:
    """Units of the control and of the row's variant, enrolled with the step's propensities in
    blocks that began after the step did, and after the row was opened."""
    begins = max(state.entered_at.timestamp(), row.opened_block + 1)
    units = {control: 0, row.variant: 0}
    for each in closed:
        if (each.metric.key, each.metric.version) != (row.metric, row.version):
            continue
        for block, cells in each.blocks:
            for (epoch, variant), cell in cells.items():
                if block >= begins and epoch >= state.epoch and variant in units:
                    units[variant] += cell.n
    return units[control], units[row.variant]


async def _arrivals(
    connection: Connection, record: ExperimentRecord, state: RampState, enrolled: int
) -> tuple[int, int, datetime | None]:
    """Up to which ordinal enrolments were looked at, how many of them are of the step, and when the
    last of these came. Where the step waits for no units, nobody looks."""
    policy = record.definition.policy
    if not isinstance(policy, RampPolicy) or current_step(policy, state).units is None:
        return state.looked_through, 0, None
    through = min(enrolled, state.looked_through + MOST_ARRIVALS)
    if through <= state.looked_through:
        return state.looked_through, 0, None
    row = await connection.fetchrow(
        _ARRIVALS, record.id, record.run, state.looked_through, through, state.epoch
    )
    assert row is not None, "an aggregate has a row"  # noqa: S101 - an invariant
    return through, row["arrived"], row["last"]
