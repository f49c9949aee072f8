"""What hands do to experiments: the acts of the control plane, with the bodies that they take and
what a project may demand approval of.

That is a start (`start`); a change while the experiment holds traffic, and the end of a run that
ships anything but the control (`change`); what moves traffic by hand, by a change of the
definition, too, or gives some back to what was rolled back or paused for harm (`allocation`). A
plain resumption goes on with what was there.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from experiments import lifecycle, paths, projects, store
from experiments.definition import WEIGHT_TOLERANCE, examine_patch
from experiments.lifecycle import Change
from experiments.model import Key, Reason, Share, ThompsonPolicy
from experiments.problems import FieldProblem, invalid
from experiments.proposals.acts import Act, Asked, Subject, UseCase, never, of_record, on_experiment
from experiments.proposals.model import Demand
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS
from experiments.views import ExperimentView, experiment_view
from experiments.writes import ControlPlane

_PAUSED_BY_GUARD: Final = """
    select paused_by_guard from run where experiment = $1 and number = $2
"""


class Reasoned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a move of state."""

    reason: Reason


class ReasonedOfVariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a rollback or a resumption: of one variant, or of the experiment."""

    reason: Reason
    variant: Key | None = None


class Conclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `conclude`: the variant that is answered from then on."""

    reason: Reason
    ship: Key


class AllocationChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a manual reallocation; what is left out stays as it is."""

    reason: Reason
    weights: Annotated[dict[Key, Share], Meta(max_length=64)] | None = None
    traffic: Annotated[float, Meta(gt=0, le=1)] | None = None


def checked_weights(weights: dict[Key, Share], record: ExperimentRecord) -> dict[str, float]:
    """Weights set by hand, in the order of the definition.

    Raises:
        ProblemError: `invalid` with every wrong one.
    """
    known = record.definition.weights
    problems = [
        FieldProblem(paths.field("weights", key), "unknown", f"there are {', '.join(known)}")
        for key in weights
        if key not in known
    ]
    problems += [
        FieldProblem(paths.field("weights", key), "missing", "give every variant its weight")
        for key in known
        if key not in weights
    ]
    total = sum(weights.values())
    control = record.definition.control.key
    needed = {control: "all others are compared with the control"}
    if isinstance(record.definition.policy, ThompsonPolicy):
        needed |= dict.fromkeys(known.keys() - {control}, "the bandit has to learn of it")
    problems += [
        FieldProblem(paths.field("weights", key), "value", f"must be above 0: {needed[key]}")
        for key in known
        if key in needed and weights.get(key) == 0 and key not in record.rolled_back
    ]
    if not problems and abs(total - 1) > WEIGHT_TOLERANCE:
        problems.append(FieldProblem("weights", "value", f"must sum to 1, sum to {total:.6g}"))
    if problems:
        raise invalid(problems)
    return {key: weights[key] for key in known}


async def show_experiment(
    connection: store.Connection,
    _: ControlPlane,
    __: ExperimentRecord,
    after: ExperimentRecord,
) -> ExperimentView:
    """What is answered to most acts: the experiment as it is then."""
    return await experiment_view(connection, after)


def plain(
    use_case: Callable[[store.Connection, ExperimentRecord, Change], Awaitable[ExperimentRecord]],
) -> UseCase:
    """A use case that reads nothing of the body but its reason."""

    async def of_body(
        connection: store.Connection, record: ExperimentRecord, _: Any, change: Change
    ) -> ExperimentRecord:
        return await use_case(connection, record, change)

    return of_body


async def _amended(connection: store.Connection, subject: Subject, asked: Asked) -> Demand | None:
    """A change of what holds traffic. Where that alone is not kept waiting, it is as much a move of
    traffic as an allocation is if it sets weights, traffic or the policy that moves them."""
    record = subject.record
    if record is None or record.state not in HOLDS_SLOTS:
        return None
    if "change" in await projects.approvals_of(connection, asked.project):
        return "change"
    before, (after, _) = record.definition, examine_patch(record.definition, asked.body)
    moves = (before.weights, before.traffic, before.policy)
    return "change" if moves == (after.weights, after.traffic, after.policy) else "allocation"


def _shipped(record: ExperimentRecord, body: Conclusion) -> Demand | None:
    return None if body.ship == record.definition.control.key else "change"


async def _resumed(connection: store.Connection, subject: Subject, asked: Asked) -> Demand | None:
    """A resumption overrules the guard where that has rolled a variant back, or paused the run."""
    record = subject.record
    if record is None:
        return None
    if asked.body.variant is not None:
        return "allocation"
    overrules = await connection.fetchval(_PAUSED_BY_GUARD, record.id, record.run)
    return "allocation" if overrules else None


async def _amend(
    connection: store.Connection, record: ExperimentRecord, patch: Any, change: Change
) -> ExperimentRecord:
    return await lifecycle.amend(connection, record, patch, change)


async def _allocate(
    connection: store.Connection, record: ExperimentRecord, body: AllocationChange, change: Change
) -> ExperimentRecord:
    if body.weights is None and body.traffic is None:
        raise invalid([FieldProblem("weights", "missing", "give `weights`, `traffic` or both")])
    weights = None if body.weights is None else checked_weights(body.weights, record)
    return await lifecycle.allocate(connection, record, weights, body.traffic, change)


async def _conclude(
    connection: store.Connection, record: ExperimentRecord, body: Conclusion, change: Change
) -> ExperimentRecord:
    return await lifecycle.conclude(connection, record, body.ship, change)


async def _resume(
    connection: store.Connection, record: ExperimentRecord, body: ReasonedOfVariant, change: Change
) -> ExperimentRecord:
    if body.variant is None:
        return await lifecycle.resume(connection, record, change)
    return await lifecycle.resume_variant(connection, record, body.variant, change)


async def _roll_back(
    connection: store.Connection, record: ExperimentRecord, body: ReasonedOfVariant, change: Change
) -> ExperimentRecord:
    if body.variant is None:
        return await lifecycle.roll_back(connection, record, change)
    return await lifecycle.roll_back_variant(connection, record, body.variant, change)


START: Final = on_experiment(
    "start", Reasoned, plain(lifecycle.start), show_experiment, of_record(lambda _, __: "start")
)
PAUSE: Final = on_experiment("pause", Reasoned, plain(lifecycle.pause), show_experiment, never)
RESUME: Final = on_experiment("resume", ReasonedOfVariant, _resume, show_experiment, _resumed)
CONCLUDE: Final = on_experiment(
    "conclude", Conclusion, _conclude, show_experiment, of_record(_shipped)
)
ROLL_BACK: Final = on_experiment("rollback", ReasonedOfVariant, _roll_back, show_experiment, never)
ARCHIVE: Final = on_experiment("archive", Reasoned, plain(lifecycle.archive), show_experiment)
AMEND: Final = on_experiment("amend", None, _amend, show_experiment, _amended, may_do_nothing=True)
ALLOCATE: Final = on_experiment(
    "allocate",
    AllocationChange,
    _allocate,
    show_experiment,
    of_record(lambda _, __: "allocation"),
    may_do_nothing=True,
)

ACTS: Final[tuple[Act, ...]] = (
    START,
    PAUSE,
    RESUME,
    CONCLUDE,
    ROLL_BACK,
    ARCHIVE,
    AMEND,
    ALLOCATE,
)
