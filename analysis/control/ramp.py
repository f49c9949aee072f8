"""The ramp: traffic grows by steps, each gated by the guard. A pure state machine.

`step` is consulted at every tick. It takes what was observed into the state and says either to
advance, or why the ramp holds. A step is done when its own conditions are met (so much time, so
many newly enrolled units, an approval) *and* the evidence allows it: every guardrail of every
variant that has traffic has bet on `LEAST_UNITS` of each of its arms, in blocks of enrolments that
lie wholly within the step, none is in alarm, no health check finds fault with the data, and the
moments are fresh.

**Overdue steps.** A step's hold counts from when the step before was due, which is when the last of
its conditions was met, not when the controller noticed it. So a controller that was down catches
up, one step in a tick at most: what the guard has not seen yet of a step is waited for, whatever
the time. So however late it is, a step lasts until the guard could have found gross harm in it.
By as long as the conditions were met and evidence was short, the next step begins later:
after a night without visitors a ramp does not rush.

**Restarts.** All that is needed stands in `RampState`, which is stored in the transaction that does
what it says.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

import msgspec

from experiments.model import RampPolicy, parse_duration
from experiments.ramp import ZERO, RampState, current_step, enter, without_approvals

LEAST_UNITS: Final = 100
"""Of each arm, on which a guardrail has to have bet within a step before the ramp goes on: so many
that a gross fault shows, 30 errors where one was to be expected. Where the traffic is small that
takes longer than the step's own conditions do."""

Code: TypeAlias = Literal[
    "advance",
    "waiting_time",
    "waiting_units",
    "awaiting_approval",
    "stale",
    "alarmed",
    "unhealthy",
    "inconclusive",
    "no_slots",
    "paused",
    "experiment_paused",
    "rolled_back",
    "complete",
]
"""What a ramp does at a tick, or why it holds."""

Condition: TypeAlias = Literal["time", "units", "approval"]

Status: TypeAlias = Literal[
    "advancing",
    "holding",
    "awaiting_approval",
    "inconclusive",
    "paused",
    "rolled_back",
    "complete",
]
"""How a ramp is, in a word."""

STATUS: Final[dict[Code, Status]] = {
    "advance": "advancing",
    "waiting_time": "holding",
    "waiting_units": "holding",
    "awaiting_approval": "awaiting_approval",
    "stale": "inconclusive",
    "alarmed": "inconclusive",
    "unhealthy": "inconclusive",
    "inconclusive": "inconclusive",
    "no_slots": "inconclusive",
    "paused": "paused",
    "experiment_paused": "paused",
    "rolled_back": "rolled_back",
    "complete": "complete",
}


class Watched(msgspec.Struct, frozen=True):
    """A guardrail of a variant that has traffic, and what the guard has of it.

    Arguments:
        guardrail, variant: which.
        row: of the guard's ledger; None where it has none yet.
        control, treatment: units of the two arms in blocks that closed just now and lie wholly
            within the step.
        bets: whether its burn-in is over.
        alarmed: whether there is evidence of harm.
    """

    guardrail: str
    variant: str
    row: int | None
    control: int
    treatment: int
    bets: bool
    alarmed: bool


class Observed(msgspec.Struct, frozen=True):
    """What a ramp is told at a tick.

    Arguments:
        now: the time.
        epoch: the experiment's epoch.
        enrolled: how many ordinals the run has given to units.
        looked_through: up to which ordinal enrolments were looked at for `arrived`.
        arrived: how many of those looked at now were enrolled in the step.
        last_arrival: when the last of these was enrolled; None where there was none.
        watched: all that gates the step.
        has_treatment: whether a variant other than the control has traffic.
        findings: about the run's data, which stand: that units are not split as they should be.
        stale: whether the moments are too old to give traffic by.
        experiment_paused: whether the experiment is paused.
        released: where the next step has no slots to grow into: what would be right; else None.
    """

    now: datetime
    epoch: int
    enrolled: int
    looked_through: int
    arrived: int
    last_arrival: datetime | None
    watched: tuple[Watched, ...]
    has_treatment: bool
    findings: tuple[str, ...] = ()
    stale: bool = False
    experiment_paused: bool = False
    released: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What a ramp does at a tick: `code` says it, `state` is where it stands afterwards. Where the
    code is `advance`, the state is at the next step, whose traffic is to be put into force."""

    code: Code
    state: RampState


class RampEvidence(msgspec.Struct, frozen=True, tag_field="type", tag="ramp"):
    """All that an outcome was computed from, and the outcome: `recompute` gives it again."""

    policy: RampPolicy
    state: RampState
    observed: Observed
    outcome: Outcome


def step(policy: RampPolicy, state: RampState, observed: Observed) -> Outcome:
    """What the ramp does now. It advances by one step at most."""
    state = _taken_in(policy, state, observed)
    halted = _halted(policy, state, observed)
    if halted is not None:
        return Outcome(halted, msgspec.structs.replace(state, rolled_back=halted == "rolled_back"))
    clock = state.clock(observed.now)
    short = _short(state, observed)
    since = None if short is None else clock if state.short_since is None else state.short_since
    waiting = msgspec.structs.replace(state, short_since=since)
    code = _waits(unmet_conditions(policy, state, clock), short)
    if code is not None:
        return Outcome(code, waiting)
    if state.step == len(policy.steps):
        return Outcome("complete", msgspec.structs.replace(waiting, completed=True))
    begins = _due(policy, state, clock)
    number, epoch = state.step + 1, observed.epoch + 1
    after = enter(waiting, number, observed.now, epoch, observed.enrolled, begins)
    return Outcome("advance", after)


def unmet_conditions(
    policy: RampPolicy, state: RampState, clock: timedelta
) -> tuple[Condition, ...]:
    """The conditions of its own that the step has not met yet."""
    conditions = current_step(policy, state)
    unmet: list[Condition] = []
    if clock < state.begins + hold_of(policy, state):
        unmet.append("time")
    if conditions.units is not None and state.reached is None:
        unmet.append("units")
    if conditions.approval and state.step not in state.approvals:
        unmet.append("approval")
    return tuple(unmet)


def unseen(state: RampState, observed: Observed) -> tuple[Watched, ...]:
    """What the guard has not been able to bet on within the step."""
    return tuple(w for w in observed.watched if min(units_seen(state, w.row)) < LEAST_UNITS)


def units_seen(state: RampState, row: int | None) -> tuple[int, int]:
    """The units of both arms on which a row of the ledger has bet within the step; no more than it
    takes."""
    return (0, 0) if row is None else state.bet_on.get(row, (0, 0))


def hold_of(policy: RampPolicy, state: RampState) -> timedelta:
    """How long the current step is held at least."""
    hold = current_step(policy, state).hold
    return ZERO if hold is None else parse_duration(hold)


def _taken_in(policy: RampPolicy, state: RampState, observed: Observed) -> RampState:
    """The state with what was observed: on how much of the step the guard has bet, and how many
    units came."""
    bet_on = dict(state.bet_on)
    for w in observed.watched:
        if w.row is not None and w.bets:
            control, treatment = units_seen(state, w.row)
            control, treatment = control + w.control, treatment + w.treatment
            bet_on[w.row] = min(control, LEAST_UNITS), min(treatment, LEAST_UNITS)
    wanted = current_step(policy, state).units
    units, reached = state.units + observed.arrived, state.reached
    if wanted is None or units < wanted:
        reached = None
    elif reached is None:
        reached = state.clock(observed.last_arrival or observed.now)
    taken_in = msgspec.structs.replace(
        state,
        bet_on=bet_on,
        looked_through=max(state.looked_through, observed.looked_through),
        units=units,
        reached=reached,
    )
    return _begun_again(taken_in, observed) if state.rolled_back else taken_in


def _begun_again(state: RampState, observed: Observed) -> RampState:
    """The state once a treatment has traffic again: the step begins anew, and what was approved
    before the harm is not approved any more."""
    if not observed.has_treatment:
        return state
    clock = state.clock(observed.now)
    again = enter(state, state.step, observed.now, observed.epoch, observed.enrolled, clock)
    return without_approvals(again, state.step)


def _halted(policy: RampPolicy, state: RampState, observed: Observed) -> Code | None:
    """Why the ramp does not look at its step at all, or None."""
    if not observed.has_treatment:
        return "rolled_back"
    if state.paused:
        return "paused"
    if observed.experiment_paused:
        return "experiment_paused"
    if state.completed and state.step == len(policy.steps):
        return "complete"
    return None


def _waits(unmet: Sequence[Condition], short: Code | None) -> Code | None:
    """What the step waits for, or None where it is done. An approval is asked for last, by when the
    guard has seen the step."""
    if "time" in unmet:
        return "waiting_time"
    if "units" in unmet:
        return "waiting_units"
    if short is not None:
        return short
    return "awaiting_approval" if "approval" in unmet else None


def _short(state: RampState, observed: Observed) -> Code | None:
    """What is wrong with the evidence, or None where it allows to go on."""
    if observed.stale:
        return "stale"
    if any(watched.alarmed for watched in observed.watched):
        return "alarmed"
    if observed.findings:
        return "unhealthy"
    if unseen(state, observed):
        return "inconclusive"
    if observed.released is not None:
        return "no_slots"
    return None


def _due(policy: RampPolicy, state: RampState, clock: timedelta) -> timedelta:
    """When the step was due, and with it from when on the next one's hold counts: when the last of
    its conditions was met, and after that as much later as the evidence was short."""
    met = [state.begins + hold_of(policy, state), state.amended]
    if state.reached is not None:
        met.append(state.reached)
    if current_step(policy, state).approval:
        met.append(state.approvals[state.step])
    due = max(met)
    if state.short_since is not None:
        due += max(clock - max(due, state.short_since), ZERO)
    return due


def reason(policy: RampPolicy, outcome: Outcome, observed: Observed) -> str:
    """What the ramp does, or why it holds, in words with the numbers."""
    state = outcome.state
    here, conditions = f"step {state.step} of {len(policy.steps)}", current_step(policy, state)
    until = observed.now + state.begins + hold_of(policy, state) - state.clock(observed.now)
    alarmed = ", ".join(f"{w.guardrail} of {w.variant}" for w in observed.watched if w.alarmed)
    missing = ", ".join(
        f"{w.guardrail} of {w.variant} ({min(units_seen(state, w.row))} of {LEAST_UNITS} units)"
        for w in unseen(state, observed)
    )
    passed = "no guardrail shows harm" if observed.watched else "no guardrail watches this ramp"
    texts: dict[Code, str] = {
        "advance": f"{here}: traffic {conditions.traffic:g}; {passed}",
        "waiting_time": f"{here} is held until {until:%Y-%m-%d %H:%M:%S} UTC",
        "waiting_units": f"{here} waits for {conditions.units or 0:,} units; {state.units:,} came",
        "awaiting_approval": f"{here} waits for an approval; {passed}",
        "stale": f"{here}: the moments lie too far behind",
        "alarmed": f"{here}: evidence of harm: {alarmed}",
        "unhealthy": f"{here}: the data are not sound: {', '.join(observed.findings)}",
        "inconclusive": f"{here}: the guard has not seen enough of it yet: {missing}",
        "no_slots": f"{here}: the next one has no slots to grow into: traffic {observed.released}",
        "paused": f"{here}: paused by hand",
        "experiment_paused": f"{here}: the experiment is paused",
        "rolled_back": f"{here}: no treatment has traffic",
        "complete": f"all steps are done: traffic {conditions.traffic:g}; {passed}",
    }
    return texts[outcome.code]


def recompute(evidence: RampEvidence) -> Outcome:
    """The outcome, computed again from what was stored with it."""
    return step(evidence.policy, evidence.state, evidence.observed)
