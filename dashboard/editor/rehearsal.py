"""What would come of a document if it were saved now: the refusals of `lifecycle.define` and
`lifecycle.amend`, and what would follow. It only reads, and locks nothing."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from analysis.folding.metrics import run_metric
from dashboard.editor.documents import get
from experiments import layers, lifecycle, paths, ramps, store
from experiments.changes import CHANGEABLE, change_problems, changed_paths
from experiments.definition import (
    definition_to_builtins,
    examine_patch,
    parse_definition,
    patch_between,
)
from experiments.model import Experiment, State
from experiments.problems import FieldProblem, ProblemError
from experiments.ramp import RampState
from experiments.ramp_checks import amendment_problems
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS
from experiments.store import Connection


class Rehearsal(msgspec.Struct, frozen=True):
    """What would come of a document.

    Arguments:
        definition: what it says; None where it is not sound.
        problems: for which it would be refused.
        follows: what would happen, in sentences; empty of a new experiment, or without a change.
        refusal: why a start would be refused, for what others have.
    """

    definition: Experiment | None
    problems: tuple[FieldProblem, ...]
    follows: tuple[str, ...] = ()
    refusal: str = ""


async def rehearse(
    connection: Connection,
    project: str,
    record: ExperimentRecord | None,
    document: Mapping[str, Any],
) -> Rehearsal:
    """What would come of saving a document.

    Arguments:
        record: the experiment that it would change; None for a new one.
    """
    if record is None:
        return await _define(connection, project, document)
    return await _amend(connection, record, document)


async def _define(connection: Connection, project: str, document: Mapping[str, Any]) -> Rehearsal:
    problems: list[FieldProblem] = []
    definition = None
    try:
        definition = parse_definition(document)
    except ProblemError as refused:
        problems += refused.errors
    key = document.get("key")
    is_key = isinstance(key, str) and not any(problem.path == "key" for problem in problems)
    if is_key and await store.get_experiment(connection, project, str(key)) is not None:
        detail = f"Project {project} has, or had, an experiment {key!r}; keys are never used again"
        problems.append(FieldProblem("key", "duplicate", detail))
    if definition is None:
        return Rehearsal(None, tuple(problems))
    problems += await layers.problems_of(connection, project, definition)
    refusal = "" if problems else await taken_slots(connection, project, definition)
    return Rehearsal(definition, tuple(problems), refusal=refusal)


async def _amend(
    connection: Connection, record: ExperimentRecord, document: Mapping[str, Any]
) -> Rehearsal:
    before = record.definition
    definition, problems = examine_patch(
        before, patch_between(definition_to_builtins(before), document)
    )
    problems += [
        held
        for held in change_problems(before, definition, record.state)
        if not any(paths.overlap(held.path, wrong.path) for wrong in problems)
    ]
    problems = problems or await layers.problems_of(connection, record.project, definition)
    lives = record.state in HOLDS_SLOTS
    if not problems and lives:
        ramp = await ramps.read(connection, record.id, record.run)
        problems = list(amendment_problems(before, definition, ramp))
    if problems:
        return Rehearsal(None, tuple(problems))
    refusal = "" if lives else await taken_slots(connection, record.project, definition)
    opens = lives and await _opens_epoch(connection, record, definition)
    follows = consequences(before, definition, record.state, opens=opens, epoch=record.epoch)
    return Rehearsal(definition, (), tuple(follows), refusal)


async def taken_slots(connection: Connection, project: str, definition: Experiment) -> str:
    """Who has some of the slots of a layer that a start would claim, in a sentence; empty where
    nobody has. The start itself looks again, under a lock."""
    wanted = definition.layer
    if wanted is None:
        return ""
    first, end = wanted.slots
    holders = [
        f"{owner.experiment} ({owner.state}) has [{owner.slots[0]}, {owner.slots[1]})"
        for owner in (await layers.owners(connection, project, wanted.key))[wanted.key]
        if owner.experiment != definition.key and owner.slots[0] < end and first < owner.slots[1]
    ]
    if not holders:
        return ""
    return f"[{first}, {end}) of layer {wanted.key} is taken: {', '.join(holders)}."


async def _opens_epoch(
    connection: Connection, record: ExperimentRecord, definition: Experiment
) -> bool:
    before = record.definition
    if any(changed_paths(before.targeting, definition.targeting)):
        return True
    weights = None if definition.weights == before.weights else definition.weights
    traffic = None if definition.traffic == before.traffic else definition.traffic
    if weights is None and traffic is None:
        return False
    return await lifecycle.plan_split(connection, record, weights, traffic) is not None


def consequences(
    before: Experiment, after: Experiment, state: State, *, opens: bool, epoch: int
) -> Iterator[str]:
    """What follows from a change of a definition, in sentences. Pure.

    Arguments:
        opens: whether it makes a new epoch; `epoch` is the number of the current one.
    """
    changed = list(changed_paths(before, after))
    if not changed or state == "draft":
        return
    lives = state in HOLDS_SLOTS

    def touches(*roots: str) -> bool:
        return any(paths.overlap(root, path) for root in roots for path in changed)

    split = after.weights != before.weights or after.traffic != before.traffic
    if opens:
        what = "who takes part" if touches("targeting") else "how traffic is split"
        yield f"Assignment changes, {what}: epoch {epoch + 1} begins."
    elif lives and split:
        yield "Less than 1 % of the traffic would move: the split stays, and no epoch begins."
    if lives:
        yield from _of_metrics(before, after)
        if touches("policy"):
            yield "The controller goes by the new policy from its next round on."
        if touches("guard"):
            yield "The guard goes by its new settings from its next round on."
        if touches("when_stale"):
            yield "Routers hear of the new rule for stale news with their next snapshot."
    elif touches("traffic", "variants", "targeting", "salt", "stickiness", "layer", "policy"):
        yield "The run is over: what assignment reads takes effect in the next one."
    yield "A new revision is kept, with your name and reason."


def _of_metrics(before: Experiment, after: Experiment) -> Iterator[str]:
    old = {metric.key: metric for metric in before.metrics}
    new = {metric.key: metric for metric in after.metrics}
    anew = [
        key
        for key, metric in new.items()
        if key not in old or run_metric(old[key]).version != run_metric(metric).version
    ]
    if anew:
        yield (
            f"{', '.join(anew)}: computed anew for those who are enrolled already (backfill); "
            "until it is done the report says how much is filled in."
        )
    gone = [key for key in old if key not in new]
    if gone:
        yield f"{', '.join(gone)}: no longer computed, nor shown."
    watched = [
        key
        for key, metric in new.items()
        if metric.role == "guardrail"
        and (key in anew or old[key].role != metric.role or old[key].margin != metric.margin)
    ]
    if watched:
        yield (
            f"{', '.join(watched)}: the guard takes alpha for it from what is unspent, and begins "
            "with fresh evidence."
        )


_FOR_GOOD: Final = "An experiment keeps its key for good."
_PLANNED: Final = "Primary metrics are part of the plan: they stay from the first start on."
_RUNS: Final = "Stays as it is while the run goes on."
_ENDED: Final = "Its report stands on this: another value is another experiment."
_ARCHIVED: Final = "An archived experiment does not change."
_STEP: Final = "This step was begun: it stays as it was."


def holder(
    record: ExperimentRecord | None, document: Mapping[str, Any], ramp: RampState | None
) -> Callable[[str], str]:
    """What tells of a path why it cannot be changed; empty where it can.

    Arguments:
        record: the experiment that is edited; None for a new one, of which all can change.
        document: the paths are those of this one.
        ramp: where the run's ramp stands, if it has one.
    """
    if record is None or record.state == "draft":
        return lambda path: _FOR_GOOD if record is not None and path == "key" else ""
    state = record.state
    primary = {metric.key for metric in record.definition.metrics if metric.role == "primary"}
    allowed = CHANGEABLE[state]
    fixed = {"archived": _ARCHIVED, "running": _RUNS, "paused": _RUNS}.get(state, _ENDED)

    def held(path: str) -> str:
        if path == "key":
            return _FOR_GOOD
        if not any(paths.covers(pattern, path) for pattern in allowed):
            return fixed
        if path.startswith("metrics["):
            block = path[: path.index("]") + 1]
            return _PLANNED if get(document, f"{block}.key") in primary else ""
        if path.startswith("policy.steps[") and ramp is not None and state in HOLDS_SLOTS:
            place = int(path[len("policy.steps[") : path.index("]")])
            is_field = path.endswith((".hold", ".units", ".approval"))
            done = place < ramp.step - 1 or (place == ramp.step - 1 and not is_field)
            return _STEP if done else ""
        return ""

    return held
