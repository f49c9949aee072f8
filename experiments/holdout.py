"""The project's holdout: units that take part in nothing, so that all that experiments do together
can be seen beside them.

It is an experiment like any other, `$holdout` with the variants `held` and `open`, but for who
changes it: a run lasts as long as somebody is held out, and every change of who that is makes a new
epoch of each experiment of such units, in the same transaction, for epochs pin whom assignment
leaves out (DESIGN 1.2). Nothing reallocates it, and nothing rolls it back: it has no guardrails.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from experiments import lifecycle, moves, store
from experiments.allocation import Allocation, counts, runs_of
from experiments.changes import change_problems, changed_paths
from experiments.definition import definition_to_builtins, examine_built_in
from experiments.lifecycle import Change, Split
from experiments.model import HOLDOUT, SLOTS, Experiment
from experiments.pins import HELD, OPEN
from experiments.problems import FieldProblem, invalid
from experiments.records import Epoch, ExperimentRecord, HoldoutPin
from experiments.states import HOLDS_SLOTS
from experiments.store import Connection

SALT: Final = "#holdout"
_DEFAULT_UNIT_TYPE: Final = "select default_unit_type from project where key = $1"
_GO_ON: Final = """
    update experiment x set epoch = x.epoch + 1, updated_at = pinned.at, version = $3
    from unnest($1::bigint[], $2::timestamptz[]) as pinned (experiment, at)
    where x.id = pinned.experiment
"""


class Wish(msgspec.Struct, frozen=True):
    """The holdout that somebody wants: the share of units held, and the metrics and attributes of
    its report as a definition has them, None where they stay as they are."""

    share: float
    metrics: Any = None
    record: Any = None


async def put_holdout(
    connection: Connection, project: str, wish: Wish, change: Change
) -> ExperimentRecord:
    """Hold this share of the units out from now on, in the caller's transaction, in which nobody
    else changes an experiment of the project.

    The share grows and shrinks slot by slot, however little; 0 ends the run, and more than 0 begins
    the next one, with other units.

    Raises:
        ProblemError: `invalid` with every wrong field.
    """
    await store.enter_alone(connection, project)
    standing = await store.get_experiment(connection, project, HOLDOUT, lock=True)
    if standing is not None:
        change = lifecycle.dated(change, standing)
    record = await _defined(connection, project, standing, wish, change)
    before = await _held(connection, record)
    if wish.share > 0:
        record = await _hold(connection, record, change)
    elif record.state == "running":
        record = await lifecycle.conclude(connection, record, OPEN, change)
    if await _held(connection, record) != before:
        await _pin(connection, record, change)
    return record


def share_of(allocation: Allocation) -> float:
    """The share of units that an allocation holds out."""
    return counts(allocation).get(HELD, 0) / SLOTS


async def _defined(
    connection: Connection,
    project: str,
    record: ExperimentRecord | None,
    wish: Wish,
    change: Change,
) -> ExperimentRecord:
    """The experiment with its definition as wished; it is made where there is none yet."""
    if record is None:
        unit_type = await connection.fetchval(_DEFAULT_UNIT_TYPE, project)
        definition = _definition({"unit": {"type": unit_type}}, wish, None)
        made = await store.insert_experiment(connection, project, definition, change.at)
        assert made is not None, "nobody else makes it meanwhile"  # noqa: S101 - an invariant
        await store.insert_revision(connection, made, change.actor, change.reason)
        return made
    definition = _definition(definition_to_builtins(record.definition), wish, record)
    if not any(changed_paths(record.definition, definition)):
        return record
    return await store.amend(connection, record, definition, change.at, change.actor, change.reason)


def _definition(
    standing: dict[str, Any], wish: Wish, record: ExperimentRecord | None
) -> Experiment:
    data = standing | {"key": HOLDOUT, "salt": SALT, "name": "Holdout"}
    if wish.share > 0 or record is None:  # nobody held: the weights stay those of the run
        held = wish.share or 0.5
        data["variants"] = [
            {"key": HELD, "control": True, "weight": held, "value": True},
            {"key": OPEN, "weight": round(1 - held, 12), "value": False},
        ]
    given = {"metrics": wish.metrics, "record": wish.record}
    data |= {name: value for name, value in given.items() if value is not None}
    definition, problems = examine_built_in(data)
    problems += [
        FieldProblem(
            f"metrics[{index}].role", "conflict", "nothing is rolled back here: make it secondary"
        )
        for index, metric in enumerate(definition.metrics)
        if metric.role == "guardrail"
    ]
    if record is not None and record.state == "running":
        problems += change_problems(record.definition, definition, "running")
    if problems:
        raise invalid(problems)
    return definition


async def _hold(
    connection: Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    if record.state != "running":
        return await lifecycle.start(connection, record, change)
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    weights = record.definition.weights
    history = await store.run_allocations(connection, record.id, record.run)
    divide = moves.Divide(moves.in_order(weights), 1.0)
    allocation = moves.carry_out(divide, epoch.allocation, history)
    if allocation == epoch.allocation:
        return record
    split = Split(allocation, weights, divide)
    asked = {"share": share_of(allocation)}
    return await lifecycle.open_epoch(
        connection, record, "running", split, change, "holdout", asked
    )


async def _held(connection: Connection, record: ExperimentRecord) -> HoldoutPin | None:
    """What epochs pin while the holdout stands like this."""
    if record.state != "running":
        return None
    epoch: Epoch = await store.get_epoch(connection, record.id, record.epoch)
    held = runs_of(epoch.allocation, HELD)
    return HoldoutPin(record.id, epoch.run, epoch.number, epoch.salt, held)


async def _pin(connection: Connection, record: ExperimentRecord, change: Change) -> None:
    pin = await _held(connection, record)
    asked = {"held": 0 if pin is None else sum(end - first for first, end in pin.held)}
    of_it = msgspec.structs.replace(change, reason=f"the holdout: {change.reason}")
    times = {}
    async for pinned, epoch in _pinned(connection, record):
        dated = lifecycle.dated(of_it, pinned)
        number = epoch.number + 1
        ruled = await lifecycle.by_hand(
            connection, pinned, "holdout", asked, dated, epoch_after=number
        )
        # The same but for the holdout: the same slots, so nothing was resized.
        again = msgspec.structs.replace(
            epoch,
            number=number,
            holdout=pin,
            at=ruled.at,
            actor=ruled.actor,
            reason=ruled.reason,
            decision=ruled.decision,
        )
        await store.insert_epoch(connection, pinned.id, again, resized=False, move=moves.Keep())
        times[pinned.id] = ruled.at
    version = await store.touch_project(connection, record.project)
    await connection.execute(_GO_ON, [*times], [*times.values()], version)


async def _pinned(
    connection: Connection, record: ExperimentRecord
) -> AsyncIterator[tuple[ExperimentRecord, Epoch]]:
    """The experiments whose epochs pin the holdout, those of its units that have slots, and the
    current epoch of each."""
    for state in HOLDS_SLOTS:
        after = None
        while page := await store.list_experiments(
            connection, record.project, store.SLICE, after, state
        ):
            those = [x for x in page if x.definition.unit.type == record.definition.unit.type]
            epochs = await store.get_epochs(connection, [(x.id, x.epoch) for x in those])
            for found in those:
                yield found, epochs[found.id]
            after = page[-1].id
