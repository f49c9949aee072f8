"""The life of an experiment: defined, started, changed, stopped. Each function is one use case; it
runs within its caller's transaction, on a record that the caller has locked in it (`find`), and
leaves either all of it behind or nothing."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from experiments import layers, overrides, paths, pins, store
from experiments.allocation import (
    Allocation,
    enrols_same,
    initial,
    is_worthwhile,
    reallocate,
    traffic_of,
)
from experiments.changes import change_problems, changed_paths
from experiments.definition import examine_patch
from experiments.model import HOLDOUT, Experiment, State
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import Epoch, ExperimentRecord
from experiments.states import HOLDS_SLOTS, Verb, move


class Change(msgspec.Struct, frozen=True):
    """Who changes something, when, and why."""

    actor: str
    reason: str
    at: datetime


class Split(msgspec.Struct, frozen=True):
    """How an epoch splits the traffic: who owns which slot, and the weights that were stated."""

    allocation: Allocation
    weights: dict[str, float]


async def find(
    connection: store.Connection, project: str, key: str, *, lock: bool = False
) -> ExperimentRecord:
    """The experiment of this key.

    Raises:
        ProblemError: `not-found`.
    """
    record = await store.get_experiment(connection, project, key, lock=lock)
    if record is None:
        raise ProblemError("not-found", f"Project {project} has no experiment {key!r}")
    return record


async def find_to_change(connection: store.Connection, project: str, key: str) -> ExperimentRecord:
    """The experiment of this key, locked, which a caller is about to change by itself.

    Raises:
        ProblemError: `not-found`; `conflict` where it is the built-in one.
    """
    record = await find(connection, project, key, lock=True)
    if record.key == HOLDOUT:
        raise ProblemError(
            "conflict", f"{HOLDOUT} is the project's holdout: `PUT /v1/holdout` changes it"
        )
    return record


async def define(
    connection: store.Connection, project: str, definition: Experiment, change: Change
) -> ExperimentRecord:
    """Store a definition as a draft, revision 1.

    Raises:
        ProblemError: `exists` where the key was ever used in the project; `invalid` where it names
            a layer that there is not, or one of other units.
    """
    problems = await layers.problems_of(connection, project, definition)
    if problems:
        raise invalid(problems)
    record = await store.insert_experiment(connection, project, definition, change.at)
    if record is None:
        raise ProblemError(
            "exists",
            f"Project {project} has, or had, an experiment {definition.key!r}; "
            "keys are never used again",
        )
    await store.insert_revision(connection, record, change.actor, change.reason)
    return record


async def amend(
    connection: store.Connection, record: ExperimentRecord, patch: Any, change: Change
) -> ExperimentRecord:
    """Change a definition by a merge patch (RFC 7396): a new revision, and one new epoch where it
    changes what assignment reads while the experiment runs: targeting, or the split if at least
    1 % of the traffic would move. Overrides of what a draft has no more are ended.

    Raises:
        ProblemError: `invalid` with every wrong field, and every one that this state does not allow
            to change.
    """
    definition, problems = examine_patch(record.definition, patch)
    problems += [
        held
        for held in change_problems(record.definition, definition, record.state)
        if not any(paths.overlap(held.path, wrong.path) for wrong in problems)
    ]
    problems = problems or await layers.problems_of(connection, record.project, definition)
    if problems:
        raise invalid(problems)
    if not any(changed_paths(record.definition, definition)):
        return record
    amended = await store.amend(
        connection, record, definition, change.at, change.actor, change.reason
    )
    await overrides.end_outdated(connection, amended, change.at, change.actor)
    if record.state not in HOLDS_SLOTS:
        return amended
    split = await _amended_split(connection, record, definition)
    if split is None:
        return amended
    return await open_epoch(connection, amended, record.state, split, change)


async def _amended_split(
    connection: store.Connection, record: ExperimentRecord, definition: Experiment
) -> Split | None:
    """The split of the epoch that a change of the definition makes, or None where it makes none."""
    before, split = record.definition, None
    weights = None if definition.weights == before.weights else definition.weights
    traffic = None if definition.traffic == before.traffic else definition.traffic
    if weights is not None or traffic is not None:
        split = await plan_split(connection, record, weights, traffic)
    if split is None and any(changed_paths(before.targeting, definition.targeting)):
        return await _split_of(connection, record)
    return split


async def allocate(
    connection: store.Connection,
    record: ExperimentRecord,
    weights: Mapping[str, float] | None,
    traffic: float | None,
    change: Change,
) -> ExperimentRecord:
    """Split the traffic anew: a new epoch, unless less than 1 % of the traffic would move. What is
    None stays as routers use it now, wherever a hand or a bandit has moved it to.

    Raises:
        ProblemError: `conflict` where the experiment is neither running nor paused.
    """
    if record.state not in HOLDS_SLOTS:
        raise ProblemError(
            "conflict", f"An experiment that is {record.state} has no traffic to allocate"
        )
    split = await plan_split(connection, record, weights, traffic)
    if split is None:
        return record
    return await open_epoch(connection, record, record.state, split, change)


async def plan_split(
    connection: store.Connection,
    record: ExperimentRecord,
    weights: Mapping[str, float] | None,
    traffic: float | None,
) -> Split | None:
    """The split with these weights and this traffic (None: as now), or None where it would move
    less than 1 % of the traffic."""
    current = await store.get_epoch(connection, record.id, record.epoch)
    if weights is None:
        weights = current.weights
    if traffic is None:
        traffic = traffic_of(current.allocation)
    history = await store.run_allocations(connection, record.id, record.run)
    allocation = reallocate(current.allocation, weights, traffic, history)
    if not is_worthwhile(current.allocation, allocation):
        return None
    return Split(allocation, dict(weights))


async def start(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Begin the next run: a new salt, no old data, and its first epoch.

    Raises:
        ProblemError: `conflict` where this state does not allow it, or another experiment has some
            of its slots in a layer.
    """
    state = move(record.state, "start")
    await layers.claim(connection, record)
    definition, run = record.definition, record.run + 1
    await store.insert_run(connection, record.id, run, definition.salt_of(run), change.at)
    started = msgspec.structs.replace(record, run=run, ship=None)
    split = Split(initial(definition.weights, definition.traffic), definition.weights)
    return await open_epoch(connection, started, state, split, change)


async def pause(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Let the control answer everybody for a while; nobody enrols."""
    return await _keep_allocation(connection, record, "pause", change)


async def resume(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Go on after a pause, slot for slot as before."""
    return await _keep_allocation(connection, record, "resume", change)


async def _keep_allocation(
    connection: store.Connection, record: ExperimentRecord, verb: Verb, change: Change
) -> ExperimentRecord:
    state = move(record.state, verb)
    return await open_epoch(connection, record, state, await _split_of(connection, record), change)


async def _split_of(connection: store.Connection, record: ExperimentRecord) -> Split:
    """The split as it stands."""
    current = await store.get_epoch(connection, record.id, record.epoch)
    return Split(current.allocation, current.weights)


async def conclude(
    connection: store.Connection, record: ExperimentRecord, ship: str, change: Change
) -> ExperimentRecord:
    """End the run; `ship` is the variant that is answered from then on."""
    return await _end_run(connection, record, move(record.state, "conclude"), ship, change, None)


async def roll_back(
    connection: store.Connection,
    record: ExperimentRecord,
    change: Change,
    decision: int | None = None,
) -> ExperimentRecord:
    """End the run and give all traffic to the control."""
    state = move(record.state, "rollback")
    control = record.definition.control.key
    return await _end_run(connection, record, state, control, change, decision)


async def archive(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Put an experiment away: routers forget it, its reports stay."""
    archived = msgspec.structs.replace(
        record, state=move(record.state, "archive"), updated_at=change.at
    )
    await store.save_experiment(connection, archived)
    return archived


async def _end_run(
    connection: store.Connection,
    record: ExperimentRecord,
    state: State,
    ship: str,
    change: Change,
    decision: int | None,
) -> ExperimentRecord:
    keys = list(record.definition.weights)
    if ship not in keys:
        raise invalid([FieldProblem("ship", "reference", f"there are {', '.join(keys)}")])
    await store.end_run(connection, record.id, record.run, change.at)
    ended = msgspec.structs.replace(record, ship=ship)
    split = Split(initial({ship: 1.0}, 1.0), {ship: 1.0})
    return await open_epoch(connection, ended, state, split, change, decision)


async def open_epoch(
    connection: store.Connection,
    record: ExperimentRecord,
    state: State,
    split: Split,
    change: Change,
    decision: int | None = None,
) -> ExperimentRecord:
    """Pin all that assignment reads as the next epoch, and make it the current one.

    What has ended answers alike for all: it has no part of a layer, and nobody of it is held out.
    """
    definition, lives = record.definition, state in HOLDS_SLOTS
    epoch = Epoch(
        number=record.epoch + 1,
        run=record.run,
        state=state,
        salt=definition.salt_of(record.run),
        allocation=split.allocation,
        weights=split.weights,
        targeting=definition.targeting,
        layer=await pins.layer_pin(connection, record.project, definition) if lives else None,
        holdout=await pins.holdout_pin(connection, record.project, definition) if lives else None,
        stickiness=definition.stickiness,
        ship=record.ship,
        at=change.at,
        actor=change.actor,
        reason=change.reason,
        decision=decision,
    )
    resized = True
    if record.epoch:
        before = await store.get_epoch(connection, record.id, record.epoch)
        resized = before.run != epoch.run or not enrols_same(before.allocation, split.allocation)
    await store.insert_epoch(connection, record.id, epoch, resized=resized)
    opened = msgspec.structs.replace(record, state=state, epoch=epoch.number, updated_at=change.at)
    await store.save_experiment(connection, opened)
    return opened
