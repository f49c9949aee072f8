"""A hand on a ramp: to approve a step, to pause and resume, to jump. Each function is one use case
as those of `lifecycle`: it runs within its caller's transaction, on a record that the caller has
locked, and is a decision in the ledger."""

from typing import NamedTuple

from experiments import lifecycle, ramp, ramps, store
from experiments.allocation import counts
from experiments.lifecycle import Change
from experiments.model import RampPolicy
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.ramp import RampState
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS


class Ramp(NamedTuple):
    """The ramp of a run: its steps, and where it stands."""

    policy: RampPolicy
    state: RampState


def policy_of(record: ExperimentRecord) -> RampPolicy:
    """The ramp of a definition.

    Raises:
        ProblemError: `conflict` where its policy is another.
    """
    policy = record.definition.policy
    if not isinstance(policy, RampPolicy):
        kind = str(policy.__struct_config__.tag)
        raise ProblemError("conflict", f"The policy of this experiment is {kind}: it has no ramp")
    return policy


async def find(connection: store.Connection, record: ExperimentRecord) -> Ramp:
    """The ramp of the current run.

    Raises:
        ProblemError: `conflict` where there is none.
    """
    policy = policy_of(record)
    state = await ramps.read(connection, record.id, record.run)
    if state is None or record.state not in HOLDS_SLOTS:
        raise ProblemError("conflict", f"An experiment that is {record.state} has no ramp to move")
    return Ramp(policy, state)


async def approve(
    connection: store.Connection, record: ExperimentRecord, step: int, change: Change
) -> ExperimentRecord:
    """Approve a step, the current one or a later one. Again changes nothing.

    Raises:
        ProblemError: `conflict` where the step is done or waits for no approval; `invalid` where
            there is no such step.
    """
    policy, state = await find(connection, record)
    _expect_step(policy, step)
    if step < state.step or (step == state.step and state.completed):
        raise ProblemError("conflict", f"Step {step} is done: {_where(policy, state)}")
    if not policy.steps[step - 1].approval:
        raise ProblemError("conflict", f"Step {step} waits for no approval")
    if step not in state.approvals:
        await lifecycle.by_hand(connection, record, "approve", {"step": step}, change)
        approved = ramp.approve(state, step, change.at)
        await ramps.keep(connection, record.id, record.run, approved)
    return record


async def pause(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Let the steps wait; the traffic stays, and the guard goes on watching.

    Raises:
        ProblemError: `conflict` where the ramp is paused or complete.
    """
    policy, state = await find(connection, record)
    if state.paused:
        raise ProblemError("conflict", f"The ramp is paused already, at {_where(policy, state)}")
    if state.completed and state.step == len(policy.steps):
        raise ProblemError("conflict", "The ramp is complete: there is nothing to pause")
    await lifecycle.by_hand(connection, record, "ramp_pause", {}, change)
    await ramps.keep(connection, record.id, record.run, ramp.pause(state, change.at))
    return record


async def resume(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Let the steps go on after a pause, with as much of their time as had passed by then.

    Raises:
        ProblemError: `conflict` where the ramp is not paused.
    """
    policy, state = await find(connection, record)
    if not state.paused:
        raise ProblemError("conflict", f"The ramp is not paused, but at {_where(policy, state)}")
    await lifecycle.by_hand(connection, record, "ramp_resume", {}, change)
    resumed = ramp.resume(state, change.at, runs=record.state == "running")
    await ramps.keep(connection, record.id, record.run, resumed)
    return record


async def jump(
    connection: store.Connection, record: ExperimentRecord, step: int, change: Change
) -> ExperimentRecord:
    """Go to a step, ahead or back, or to the beginning of the current one, whatever it waits for.
    A new epoch, unless the traffic is that of now.

    Raises:
        ProblemError: `conflict` where no treatment has traffic; `invalid` at `step` where there is
            no such step, or the run has no slots left to grow so far.
    """
    policy, state = await find(connection, record)
    _expect_step(policy, step)
    current = await store.get_epoch(connection, record.id, record.epoch)
    if counts(current.allocation).keys() <= {record.definition.control.key}:
        raise ProblemError("conflict", "No treatment has traffic: resume a variant first")
    enrolled = await ramps.enrolled(connection, record.id, record.run)
    split = await _plan(connection, record, policy.steps[step - 1].traffic)
    asked = {"step": step}
    if split.allocation == current.allocation:
        await lifecycle.by_hand(connection, record, "jump", asked, change)
        moved = record
    else:
        moved = await lifecycle.open_epoch(
            connection, record, record.state, split, change, "jump", asked
        )
    jumped = ramp.jump(state, step, change.at, moved.epoch, enrolled)
    await ramps.keep(connection, record.id, record.run, jumped)
    return moved


async def _plan(
    connection: store.Connection, record: ExperimentRecord, traffic: float
) -> lifecycle.Split:
    try:
        return await lifecycle.plan_traffic(connection, record, traffic)
    except ProblemError as error:
        raise invalid(
            [FieldProblem("step", "value", f"its traffic {each.detail}") for each in error.errors]
        ) from error


def _expect_step(policy: RampPolicy, step: int) -> None:
    if not 1 <= step <= len(policy.steps):
        detail = f"steps are counted from 1, and the last one is {len(policy.steps)}"
        raise invalid([FieldProblem("step", "reference", detail)])


def _where(policy: RampPolicy, state: RampState) -> str:
    return f"step {state.step} of {len(policy.steps)}"
