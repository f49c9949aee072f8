"""What a ramp must be like, in a definition and when a run goes on whose definition changes."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Final

from experiments import paths
from experiments.allocation import slots_of, too_little_traffic
from experiments.decoding import Decoded
from experiments.model import SLOTS, Experiment, RampPolicy, parse_duration
from experiments.problems import FieldProblem
from experiments.ramp import RampState

SHORTEST_HOLD: Final = timedelta(seconds=1)
LONGEST_HOLD: Final = timedelta(days=90)


def ramp_problems(draft: Decoded[Experiment]) -> Iterator[FieldProblem]:
    """What is wrong with the ramp of a definition, if it has one."""
    policy = draft.value.policy
    if not isinstance(policy, RampPolicy) or not draft.sound("policy.kind"):
        return
    if draft.sound("traffic") and draft.value.traffic != 1.0:
        detail = "the steps of a ramp say the traffic: leave this out"
        yield FieldProblem("traffic", "conflict", detail)
    if not draft.sound("policy.steps"):
        return
    if draft.sound("variants[*].weight"):
        needed = max(sum(variant.weight > 0 for variant in draft.value.variants), 1)
        if slots_of(policy.steps[0].traffic) < needed:
            yield FieldProblem(_path(0, "traffic"), "value", too_little_traffic(needed))
    for index, (before, step) in enumerate(pairwise(policy.steps), 1):
        if slots_of(step.traffic) <= slots_of(before.traffic):
            detail = f"must be above that of the step before, {before.traffic:g}, by {1 / SLOTS:g}"
            yield FieldProblem(_path(index, "traffic"), "value", f"{detail} or more")
    for index, step in enumerate(policy.steps):
        if step.hold is not None and not (
            SHORTEST_HOLD <= parse_duration(step.hold) <= LONGEST_HOLD
        ):
            yield FieldProblem(_path(index, "hold"), "value", "must be from 1s to 90d")
    for index, step in enumerate(policy.steps[:-1]):
        if step.hold is None and step.units is None and not step.approval:
            detail = "say what the step waits for: `hold`, `units` or `approval: true`"
            yield FieldProblem(paths.item("policy.steps", index), "missing", detail)


def amendment_problems(
    before: Experiment, after: Experiment, state: RampState | None
) -> Iterator[FieldProblem]:
    """What a run that goes on does not allow to change of its ramp.

    Steps that are done stay as they were, for the ledger speaks of them; of the current one the
    traffic, which is in force. Its conditions, and all later steps, may change. A ramp may end in
    the midst of a run, and the traffic stays as it is then; but it begins with a run.

    Args:
        state: where the run's ramp stands; None where it began without one.
    """
    if not isinstance(after.policy, RampPolicy):
        return
    if not isinstance(before.policy, RampPolicy) or state is None:
        detail = "a ramp begins with a run, and this one goes on: move its traffic by hand"
        yield FieldProblem("policy.kind", "immutable", detail)
        return
    steps = after.policy.steps
    if len(steps) < state.step:
        detail = f"the ramp is at step {state.step}: steps that were begun cannot be taken away"
        yield FieldProblem("policy.steps", "immutable", detail)
        return
    for index in range(state.step - 1):
        if before.policy.steps[index] != steps[index]:
            detail = f"the ramp is at step {state.step}: a step that is done stays as it was"
            yield FieldProblem(paths.item("policy.steps", index), "immutable", detail)
    current = state.step - 1
    if before.policy.steps[current].traffic != steps[current].traffic:
        detail = f"is in force, as step {state.step}: `POST .../ramp/jump` goes to another step"
        yield FieldProblem(_path(current, "traffic"), "immutable", detail)


def _path(index: int, name: str) -> str:
    return paths.field(paths.item("policy.steps", index), name)
