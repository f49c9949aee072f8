"""The life of an experiment: defined, started, changed, stopped. Each function is one use case; it
runs within its caller's transaction, on a record that the caller has locked in it (`find`), and
leaves either all of it behind or nothing."""

import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from experiments import layers, moves, overrides, paths, pins, ramps, store
from experiments.allocation import (
    Allocation,
    enrols_same,
    is_too_small,
    is_worthwhile,
    owners_of,
    propensities,
    runs_of,
    traffic_of,
)
from experiments.changes import change_problems, changed_paths
from experiments.definition import examine_patch
from experiments.model import HOLDOUT, Experiment, RampPolicy, State, is_key
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.ramp_checks import amendment_problems
from experiments.records import Epoch, ExperimentRecord
from experiments.states import HOLDS_SLOTS, Verb, move


class Change(msgspec.Struct, frozen=True):
    """Who changes something, when, and why; and the decision that it follows from, where that is
    in the ledger already. Use cases take one that is `dated`."""

    actor: str
    reason: str
    at: datetime
    decision: int | None = None


class Split(msgspec.Struct, frozen=True):
    """How an epoch splits the traffic: who owns which slot, the weights that were stated, and the
    move by which this follows from the epoch before."""

    allocation: Allocation
    weights: dict[str, float]
    move: moves.AnyMove


class Hand(msgspec.Struct, frozen=True, tag_field="type", tag="manual"):
    """The evidence of a decision of the rule `manual`: what a hand asked for."""

    asked: dict[str, Any]


async def find(
    connection: store.Connection, project: str, key: str, *, lock: bool = False
) -> ExperimentRecord:
    """The experiment of this key.

    Raises:
        ProblemError: `not-found`.
    """
    record = None
    if is_key(key):
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


def dated(change: Change, record: ExperimentRecord) -> Change:
    """The change at its own time, or at that of the last one of a record where that is later.

    Epochs tell the past by their times, so within an experiment these never go back; but writers
    wait for each other, and no two clocks agree for ever. So the record is locked by now, and the
    change's time was read after that.
    """
    return msgspec.structs.replace(change, at=max(change.at, record.updated_at))


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
    if not problems and record.state in HOLDS_SLOTS:
        ramp = await ramps.read(connection, record.id, record.run)
        problems = list(amendment_problems(record.definition, definition, ramp))
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
    if definition.policy != record.definition.policy:
        await ramps.note_amendment(connection, record.id, record.run, change.at)
    split = await _amended_split(connection, record, definition)
    if split is None:
        return amended
    asked = {"revision": amended.revision}
    return await open_epoch(connection, amended, record.state, split, change, "amend", asked)


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
        ProblemError: `conflict` where the experiment is neither running nor paused; `invalid` where
            the weights name a variant that is rolled back.
    """
    if record.state not in HOLDS_SLOTS:
        raise ProblemError(
            "conflict", f"An experiment that is {record.state} has no traffic to allocate"
        )
    if traffic is not None and isinstance(record.definition.policy, RampPolicy):
        raise ProblemError(
            "conflict",
            "A ramp says the traffic of this experiment: "
            f"`POST /v1/experiments/{record.key}/ramp/jump` goes to another of its steps",
        )
    problems = [
        FieldProblem(paths.field("weights", key), "conflict", _resume_first(record, key))
        for key in record.rolled_back
        if weights is not None and weights.get(key, 0.0) > 0
    ]
    if problems:
        raise invalid(problems)
    split = await plan_split(connection, record, weights, traffic)
    if split is None:
        return record
    asked = {"weights": weights, "traffic": traffic}
    return await open_epoch(connection, record, record.state, split, change, "allocate", asked)


async def plan_split(
    connection: store.Connection,
    record: ExperimentRecord,
    weights: Mapping[str, float] | None,
    traffic: float | None,
) -> Split | None:
    """The split with these weights and this traffic (None: as now), or None where it would move
    less than 1 % of the traffic. What they would give to a variant that is rolled back is the
    control's."""
    current = await store.get_epoch(connection, record.id, record.epoch)
    if weights is None and traffic is not None:
        with contextlib.suppress(ProblemError):  # what was released may come back by moving slots
            split = await plan_traffic(connection, record, traffic)
            return split if is_worthwhile(current.allocation, split.allocation) else None
    if weights is None:
        weights = current.weights
    weights = without(weights, record.rolled_back, record.definition.control.key)
    if traffic is None:
        traffic = traffic_of(current.allocation)
    if is_too_small(current.allocation, weights, traffic):
        return None
    divide = moves.Divide(moves.in_order(weights), traffic)
    split = await _carried_out(connection, record, divide, weights)
    return split if is_worthwhile(current.allocation, split.allocation) else None


async def plan_traffic(
    connection: store.Connection, record: ExperimentRecord, traffic: float
) -> Split:
    """The split with this traffic and the weights of now, however little that changes: no slot
    passes from one variant to another.

    Raises:
        ProblemError: `invalid` at `traffic` where it is too little for the variants, or the run has
            no slots to grow into.
    """
    weights = (await store.get_epoch(connection, record.id, record.epoch)).weights
    resize = moves.Resize(moves.in_order(weights), traffic)
    return await _carried_out(connection, record, resize, weights)


async def _carried_out(
    connection: store.Connection,
    record: ExperimentRecord,
    move: moves.AnyMove,
    weights: Mapping[str, float],
) -> Split:
    current = await store.get_epoch(connection, record.id, record.epoch)
    history = await store.run_allocations(connection, record.id, record.run)
    return Split(moves.carry_out(move, current.allocation, history), dict(weights), move)


def without(weights: Mapping[str, float], gone: Iterable[str], control: str) -> dict[str, float]:
    """Weights in which the control has those of some variants, too."""
    left = dict(weights)
    for key in gone:
        if left.get(key, 0.0) > 0:
            left[control] = round(left.get(control, 0.0) + left[key], 12)
            left[key] = 0.0
    return left


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
    started = msgspec.structs.replace(record, run=run, ship=None, rolled_back=())
    begin = moves.Begin(moves.in_order(definition.weights), definition.first_traffic)
    if isinstance(definition.policy, RampPolicy):
        await ramps.begin(connection, record.id, run, change.at, record.epoch + 1)
    split = Split(moves.carry_out(begin, None), definition.weights, begin)
    return await open_epoch(connection, started, state, split, change, "start")


async def pause(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Let the control answer everybody for a while; nobody enrols."""
    return await _keep_allocation(connection, record, "pause", change)


async def resume(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Go on after a pause, slot for slot as before. After one by the guard, its next generation
    begins."""
    resumed = await _keep_allocation(connection, record, "resume", change)
    if await store.resume_run(connection, resumed):
        await store.open_generation(connection, resumed)
    return resumed


async def _keep_allocation(
    connection: store.Connection, record: ExperimentRecord, verb: Verb, change: Change
) -> ExperimentRecord:
    state = move(record.state, verb)
    split = await _split_of(connection, record)
    await ramps.keep_time(connection, record.id, record.run, change.at, runs=state == "running")
    return await open_epoch(connection, record, state, split, change, verb)


async def _split_of(connection: store.Connection, record: ExperimentRecord) -> Split:
    """The split as it stands."""
    current = await store.get_epoch(connection, record.id, record.epoch)
    return Split(current.allocation, current.weights, moves.Keep())


async def conclude(
    connection: store.Connection, record: ExperimentRecord, ship: str, change: Change
) -> ExperimentRecord:
    """End the run; `ship` is the variant that is answered from then on."""
    return await _end_run(connection, record, "conclude", ship, change)


async def roll_back(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """End the run and give all traffic to the control."""
    return await _end_run(connection, record, "rollback", record.definition.control.key, change)


async def roll_back_variant(
    connection: store.Connection, record: ExperimentRecord, variant: str, change: Change
) -> ExperimentRecord:
    """Give the slots of a variant to the control, and nothing to it from anything until it is
    resumed; the others keep theirs, and the run goes on.

    Raises:
        ProblemError: `conflict` where the state does not allow it; `invalid` at `variant` where
            there is none of this key, it is the control, or it is rolled back already.
    """
    move(record.state, "rollback")
    control, keys = record.definition.control.key, list(record.definition.weights)
    _expect_variant(record, variant)
    if variant == control:
        detail = "is the control, which gets the traffic of what is rolled back: leave it out to "
        raise invalid([FieldProblem("variant", "value", f"{detail}roll the experiment back")])
    if variant in record.rolled_back:
        raise invalid([FieldProblem("variant", "conflict", f"{variant} is rolled back already")])
    current = await store.get_epoch(connection, record.id, record.epoch)
    withdraw = moves.Withdraw(variant, control)
    split = Split(
        moves.carry_out(withdraw, current.allocation),
        without(current.weights, [variant], control),
        withdraw,
    )
    gone = tuple(key for key in keys if key in {variant, *record.rolled_back})
    left = msgspec.structs.replace(record, rolled_back=gone)
    asked = {"variant": variant}
    opened = await open_epoch(
        connection, left, record.state, split, change, "rollback_variant", asked
    )
    await store.note_rollback(connection, opened, variant)
    return opened


async def resume_variant(
    connection: store.Connection, record: ExperimentRecord, variant: str, change: Change
) -> ExperimentRecord:
    """Give a variant that is rolled back the slots again that it had, as far as they are enrolled;
    the next generation of the guard begins.

    Raises:
        ProblemError: `conflict` where the experiment is neither running nor paused; `invalid` at
            `variant` where there is none of this key, or it is not rolled back.
    """
    if record.state not in HOLDS_SLOTS:
        raise ProblemError(
            "conflict", f"An experiment that is {record.state} has no variant to resume"
        )
    _expect_variant(record, variant)
    if variant not in record.rolled_back:
        detail = f"{variant} is not rolled back" + (
            f"; rolled back: {', '.join(record.rolled_back)}" if record.rolled_back else ""
        )
        raise invalid([FieldProblem("variant", "conflict", detail)])
    split = await _restored(connection, record, variant)
    left = tuple(key for key in record.rolled_back if key != variant)
    back = msgspec.structs.replace(record, rolled_back=left)
    asked = {"variant": variant}
    opened = await open_epoch(
        connection, back, record.state, split, change, "resume_variant", asked
    )
    await store.open_generation(connection, opened)
    return opened


async def _restored(connection: store.Connection, record: ExperimentRecord, variant: str) -> Split:
    """The split in which a variant has its slots again.

    The weights that go with it: those of before, if this is the allocation of before; those of
    now, if all comes back from the control, which has the variant's until then; and else what the
    slots say.
    """
    current = await store.get_epoch(connection, record.id, record.epoch)
    number = await store.epoch_of_rollback(connection, record, variant)
    earlier = await store.get_epoch(connection, record.id, number - 1)
    history = await store.run_allocations(connection, record.id, record.run)
    control, weight = record.definition.control.key, earlier.weights.get(variant, 0.0)
    kept = round(current.weights.get(control, 0.0) - weight, 12)
    shifted = None
    if kept > 0 and owners_of(current.allocation, runs_of(earlier.allocation, variant)) <= {
        control,
        None,
    }:
        shifted = {**current.weights, control: kept, variant: weight}
    restore = moves.Restore(
        variant, earlier.allocation, None if shifted is None else moves.in_order(shifted)
    )
    allocation = moves.carry_out(restore, current.allocation, history)
    weights = dict.fromkeys(record.definition.weights, 0.0) | propensities(allocation)
    if allocation == earlier.allocation:
        weights = earlier.weights
    elif shifted is not None:
        weights = shifted
    return Split(allocation, weights, restore)


def _expect_variant(record: ExperimentRecord, variant: str) -> None:
    keys = list(record.definition.weights)
    if variant not in keys:
        raise invalid([FieldProblem("variant", "reference", f"there are {', '.join(keys)}")])


def _resume_first(record: ExperimentRecord, variant: str) -> str:
    return (
        f"{variant} is rolled back and gets no traffic: resume it first, by "
        f'`POST /v1/experiments/{record.key}/resume` with `"variant": "{variant}"`'
    )


async def archive(
    connection: store.Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Put an experiment away: routers forget it, its reports stay."""
    archived = msgspec.structs.replace(
        record, state=move(record.state, "archive"), updated_at=change.at
    )
    await by_hand(connection, record, "archive", {}, change)
    await store.save_experiment(connection, archived)
    return archived


async def _end_run(
    connection: store.Connection,
    record: ExperimentRecord,
    verb: Verb,
    ship: str,
    change: Change,
) -> ExperimentRecord:
    state = move(record.state, verb)
    keys = list(record.definition.weights)
    if ship not in keys:
        raise invalid([FieldProblem("ship", "reference", f"there are {', '.join(keys)}")])
    if ship in record.rolled_back:
        raise invalid([FieldProblem("ship", "conflict", _resume_first(record, ship))])
    await store.end_run(connection, record.id, record.run, change.at)
    ended = msgspec.structs.replace(record, ship=ship)
    end = moves.End(ship)
    split = Split(moves.carry_out(end, None), {ship: 1.0}, end)
    return await open_epoch(connection, ended, state, split, change, verb, {"ship": ship})


async def by_hand(
    connection: store.Connection,
    record: ExperimentRecord,
    kind: str,
    asked: Mapping[str, Any],
    change: Change,
    *,
    epoch_after: int | None = None,
) -> Change:
    """Write into the ledger what a hand does, unless the change follows from a decision that stands
    there already; the change, which names its decision now.

    Args:
        record: as it was before, but for its run where a new one begins.
        kind: what it does, in a word: `pause`, `allocate`.
        asked: what it asked for, as JSON has it.
        epoch_after: the epoch that this makes; none unless told.
    """
    if change.decision is not None:
        return change
    decision = await store.insert_decision(
        connection,
        record,
        kind=kind,
        rule="manual",
        code=kind,
        epoch_after=record.epoch if epoch_after is None else epoch_after,
        at=change.at,
        actor=change.actor,
        reason=change.reason,
        evidence=Hand(dict(asked)),
        term=None,
    )
    return msgspec.structs.replace(change, decision=decision)


async def open_epoch(
    connection: store.Connection,
    record: ExperimentRecord,
    state: State,
    split: Split,
    change: Change,
    kind: str = "allocate",
    asked: Mapping[str, Any] | None = None,
) -> ExperimentRecord:
    """Pin all that assignment reads as the next epoch, and make it the current one.

    What has ended answers alike for all: it has no part of a layer, and nobody of it is held out.

    Args:
        kind, asked: what a hand does, and what it asked for: its decision, for a change that
            follows from none yet.
    """
    change = await by_hand(
        connection, record, kind, asked or {}, change, epoch_after=record.epoch + 1
    )
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
        decision=change.decision,
        rolled_back=record.rolled_back if lives else (),
    )
    resized = True
    if record.epoch:
        before = await store.get_epoch(connection, record.id, record.epoch)
        resized = before.run != epoch.run or not enrols_same(before.allocation, split.allocation)
    await store.insert_epoch(connection, record.id, epoch, resized=resized, move=split.move)
    opened = msgspec.structs.replace(record, state=state, epoch=epoch.number, updated_at=change.at)
    await store.save_experiment(connection, opened)
    return opened
