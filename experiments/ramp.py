"""Where the ramp of a run stands, and what a hand does to it: pure functions.

**The clock.** A ramp has a clock of its own. It stands while the experiment is paused and while the
ramp is, so that no pause counts as time in which a step was watched. All that is scheduled is a
time of this clock; only what is compared with data (when a step's traffic came into force) is a
time of day.

**Steps** are counted from 1, as runs and epochs are.
"""

from datetime import datetime, timedelta
from typing import Final

import msgspec

from experiments.model import RampPolicy, RampStep

ZERO: Final = timedelta(0)


class RampState(msgspec.Struct, frozen=True):
    """Where a ramp stands.

    Arguments:
        step: the step whose traffic is in force, counted from 1.
        begins: from when on its hold counts, by the ramp's clock.
        amended: when the steps were last changed, by the ramp's clock: nothing was due before.
        entered_at: when its traffic came into force.
        epoch: the epoch that this made; its units are those enrolled in this one or later.
        looked_through: enrolments of the run with a lower ordinal have been looked at for `units`.
        units: how many of these were enrolled in the step.
        reached: when there were as many as the step asks for, by the ramp's clock; None before.
        approvals: when each step was approved, by the ramp's clock.
        bet_on: units of the step, of the control and of the variant, on which each row of the
            guard's ledger has bet; no more of them than it takes to have seen the step.
        short_since: since when only evidence has been missing, by the ramp's clock; None while it
            is not.
        paused: whether a hand has paused the ramp.
        rolled_back: whether no treatment had traffic when the controller last looked.
        completed: whether all conditions of the last step were met.
        ran: the time that the clock had run when it last stopped.
        running_since: since when it runs again; None while it stands.
    """

    entered_at: datetime
    epoch: int
    step: int = 1
    begins: timedelta = ZERO
    amended: timedelta = ZERO
    looked_through: int = 0
    units: int = 0
    reached: timedelta | None = None
    approvals: dict[int, timedelta] = {}
    bet_on: dict[int, tuple[int, int]] = {}
    short_since: timedelta | None = None
    paused: bool = False
    rolled_back: bool = False
    completed: bool = False
    ran: timedelta = ZERO
    running_since: datetime | None = None

    def clock(self, at: datetime) -> timedelta:
        """What the ramp's clock shows at a time since it last started or stopped; for an earlier
        time, what it showed then."""
        if self.running_since is None:
            return self.ran
        return self.ran + max(at - self.running_since, ZERO)


def begin(at: datetime, epoch: int) -> RampState:
    """A ramp at its first step, with which a run starts."""
    return RampState(entered_at=at, epoch=epoch, running_since=at)


def enter(
    state: RampState, step: int, at: datetime, epoch: int, enrolled: int, begins: timedelta
) -> RampState:
    """The ramp at the beginning of a step.

    Args:
        epoch: in which its traffic is in force from `at` on.
        enrolled: how many ordinals the run had given to units by then.
        begins: from when on its hold counts, by the ramp's clock.
    """
    return msgspec.structs.replace(
        state,
        step=step,
        begins=begins,
        entered_at=at,
        epoch=epoch,
        looked_through=enrolled,
        units=0,
        reached=None,
        bet_on={},
        short_since=None,
        rolled_back=False,
        completed=False,
    )


def stop(state: RampState, at: datetime) -> RampState:
    """The ramp with its clock standing."""
    return msgspec.structs.replace(state, ran=state.clock(at), running_since=None)


def go_on(state: RampState, at: datetime) -> RampState:
    """The ramp with its clock running, unless a hand has paused it."""
    if state.paused or state.running_since is not None:
        return state
    return msgspec.structs.replace(state, running_since=at)


def pause(state: RampState, at: datetime) -> RampState:
    """The ramp paused by a hand: the traffic stays, the steps wait."""
    return msgspec.structs.replace(stop(state, at), paused=True)


def resume(state: RampState, at: datetime, *, runs: bool) -> RampState:
    """The ramp after a pause by hand; its clock goes on if the experiment `runs`."""
    resumed = msgspec.structs.replace(state, paused=False)
    return go_on(resumed, at) if runs else resumed


def approve(state: RampState, step: int, at: datetime) -> RampState:
    """The ramp with a step approved; the first approval counts. It is for this step alone, and may
    come before it."""
    approvals = {step: state.clock(at)} | state.approvals
    return msgspec.structs.replace(state, approvals=approvals)


def jump(state: RampState, step: int, at: datetime, epoch: int, enrolled: int) -> RampState:
    """The ramp at another step, or at the beginning of its own, by hand. Going back takes the
    approvals of the steps back that are to be gone through again."""
    entered = enter(state, step, at, epoch, enrolled, state.clock(at))
    if step > state.step:
        return entered
    return without_approvals(entered, step)


def amend(state: RampState, at: datetime) -> RampState:
    """The ramp whose steps were changed by a hand. That a hold is shorter now does not make the
    step after it overdue."""
    return msgspec.structs.replace(state, amended=state.clock(at))


def without_approvals(state: RampState, step: int) -> RampState:
    """The ramp without approvals of this step and of later ones."""
    approvals = {number: given for number, given in state.approvals.items() if number < step}
    return msgspec.structs.replace(state, approvals=approvals)


def current_step(policy: RampPolicy, state: RampState) -> RampStep:
    """The step that a ramp is at."""
    return policy.steps[state.step - 1]
