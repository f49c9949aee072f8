"""The doors of the control plane: experiments, their states and allocations, and keys."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get, patch, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from msgspec import Meta

from experiments import lifecycle, paths, store
from experiments.allocation import propensities, traffic_of
from experiments.definition import WEIGHT_TOLERANCE, parse_definition
from experiments.doors import (
    PathKey,
    json_response,
    principal_of,
    read_as,
    read_json,
)
from experiments.lifecycle import Change
from experiments.model import (
    Experiment,
    Key,
    Reason,
    Share,
    State,
    Stickiness,
    ThompsonPolicy,
)
from experiments.once import Answer
from experiments.pages import Cursor, Limit, Page, page, page_of_history, read_cursor
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import Epoch, ExperimentRecord, HoldoutPin, LayerPin, Revision
from experiments.writes import Control, ControlPlane, write

UseCase: TypeAlias = Callable[
    [store.Connection, ExperimentRecord, Change], Awaitable[ExperimentRecord]
]
"""What a hand does to an experiment that is locked: a change that is dated."""


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


class ExperimentView(msgspec.Struct, frozen=True):
    """An experiment as it stands. `weights` and `traffic` are what routers use now; those of the
    definition are what a run starts with. `rolled_back` are the variants that get no traffic until
    they are resumed."""

    project: str
    key: str
    state: State
    revision: int
    run: int
    epoch: int
    weights: dict[str, float] | None
    traffic: float | None
    ship: str | None
    created_at: datetime
    updated_at: datetime
    definition: Experiment
    rolled_back: tuple[str, ...] = ()


class EpochView(msgspec.Struct, frozen=True):
    """An epoch: what was allocated from `at` on, by whom and why, and all else that assignment
    reads."""

    number: int
    run: int
    state: State
    at: datetime
    actor: str
    reason: str
    decision: int | None
    weights: dict[str, float]
    traffic: float
    salt: str
    slots: list[tuple[str | None, int]]
    targeting: Any
    layer: LayerPin | None
    holdout: HoldoutPin | None
    stickiness: Stickiness
    ship: str | None
    rolled_back: tuple[str, ...] = ()


def epoch_view(epoch: Epoch) -> EpochView:
    """An epoch as it is shown."""
    return EpochView(
        number=epoch.number,
        run=epoch.run,
        state=epoch.state,
        at=epoch.at,
        actor=epoch.actor,
        reason=epoch.reason,
        decision=epoch.decision,
        weights=propensities(epoch.allocation),
        traffic=traffic_of(epoch.allocation),
        salt=epoch.salt,
        slots=list(epoch.allocation.runs),
        targeting=epoch.targeting,
        layer=epoch.layer,
        holdout=epoch.holdout,
        stickiness=epoch.stickiness,
        ship=epoch.ship,
        rolled_back=epoch.rolled_back,
    )


async def _view(connection: store.Connection, record: ExperimentRecord) -> ExperimentView:
    allocation = None
    if record.epoch:
        allocation = (await store.get_epoch(connection, record.id, record.epoch)).allocation
    return ExperimentView(
        project=record.project,
        key=record.key,
        state=record.state,
        revision=record.revision,
        run=record.run,
        epoch=record.epoch,
        weights=None if allocation is None else propensities(allocation),
        traffic=None if allocation is None else traffic_of(allocation),
        ship=record.ship,
        created_at=record.created_at,
        updated_at=record.updated_at,
        definition=record.definition,
        rolled_back=record.rolled_back,
    )


def etag(revision: int) -> dict[str, str]:
    """The header that names a revision."""
    return {"ETag": f'"{revision}"'}


def expect_revision(request: Request[Any, Any, Any], revision: int) -> None:
    """Let a change pass that was made to the latest revision, or does not say to which.

    `If-Match` as RFC 9110 has it: `*`, or a list of entity tags, of which weak ones match nothing.
    """
    header = request.headers.get("if-match", "*")
    named = {tag.strip() for tag in header.split(",")}
    if not named & {"*", *etag(revision).values()}:
        raise ProblemError(
            "revision-mismatch",
            f"The latest revision is {revision}, `If-Match` names {header[:80]}",
        )


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


async def write_change(
    control: ControlPlane,
    request: Request[Any, Any, Any],
    key: str,
    sent: Any,
    reason: str,
    use_case: UseCase,
    show: Callable[[store.Connection, ExperimentRecord], Awaitable[Any]] = _view,
) -> Response[bytes]:
    """Do what a hand asks for to an experiment, at the time at which that is locked.

    Args:
        sent: the body, as it came.
        show: what is answered of the experiment as it stands then.
    """

    async def act(connection: store.Connection) -> Answer:
        caller = principal_of(request)
        record = await lifecycle.find_to_change(connection, caller.project, key)
        expect_revision(request, record.revision)
        change = lifecycle.dated(Change(caller.actor, reason, control.clock()), record)
        changed = await use_case(connection, record, change)
        shown = await show(connection, changed)
        return Answer(200, etag(changed.revision), msgspec.json.encode(shown))

    return await write(control, request, sent, act)


@post(
    "/v1/experiments",
    opt={"permission": "write", "takes": Experiment, "gives": ExperimentView},
    tags=["experiments"],
)
async def create_experiment(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Define an experiment. It is a draft until it is started."""
    body = await read_json(request)
    definition = parse_definition(body)
    principal = principal_of(request)

    async def act(connection: store.Connection) -> Answer:
        change = Change(principal.actor, "defined", control.clock())
        record = await lifecycle.define(connection, principal.project, definition, change)
        view = await _view(connection, record)
        headers = {**etag(view.revision), "Location": f"/v1/experiments/{definition.key}"}
        return Answer(201, headers, msgspec.json.encode(view))

    return await write(control, request, body, act)


@get(
    "/v1/experiments",
    opt={"permission": "read", "gives": Page[ExperimentView]},
    tags=["experiments"],
)
async def list_experiments(
    request: Request[Any, Any, Any],
    control: Control,
    limit: Limit = 100,
    cursor: Cursor = None,
    in_state: Annotated[State | None, QueryParameter(name="state")] = None,
    built_in: Annotated[bool, QueryParameter(description="`$holdout`, too")] = False,
) -> Response[bytes]:
    """The project's experiments, the newest first."""
    project, after = principal_of(request).project, read_cursor(cursor)
    async with store.borrow(control.pool) as connection:
        records = await store.list_experiments(
            connection, project, limit + 1, after, in_state, built_in=built_in
        )
        views = {r.id: await _view(connection, r) for r in records[:limit]}
    return json_response(page(records, limit, lambda r: views[r.id], lambda r: r.id))


@get(
    "/v1/experiments/{key:str}",
    opt={"permission": "read", "gives": ExperimentView},
    tags=["experiments"],
)
async def read_experiment(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """An experiment as it stands; its `ETag` is its revision."""
    async with store.borrow(control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        view = await _view(connection, record)
    return json_response(view, headers=etag(view.revision))


@patch(
    "/v1/experiments/{key:str}",
    opt={"permission": "write", "takes": dict[str, Any], "gives": ExperimentView},
    tags=["experiments"],
)
async def change_experiment(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Change a definition by a merge patch; `If-Match` names the revision it was made to."""
    if "if-match" not in request.headers:
        raise ProblemError(
            "precondition-required",
            'Send the revision that you read as `If-Match: "N"`, so that no change is lost',
        )
    body = await read_json(request)
    reason = request.headers.get("x-reason", "")[:1_000] or "changed"
    return await write_change(
        control,
        request,
        key,
        body,
        reason,
        lambda c, record, change: lifecycle.amend(c, record, body, change),
    )


@get(
    "/v1/experiments/{key:str}/revisions",
    opt={"permission": "read", "gives": Page[Revision]},
    tags=["experiments"],
)
async def list_revisions(
    request: Request[Any, Any, Any],
    control: Control,
    key: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[bytes]:
    """Every definition that the experiment ever had, the newest first."""
    return await page_of_history(
        control.pool,
        request,
        key,
        limit,
        cursor,
        store.list_revisions,
        lambda r: r,
        lambda r: r.number,
    )


@get(
    "/v1/experiments/{key:str}/allocations",
    opt={"permission": "read", "gives": Page[EpochView]},
    tags=["allocations"],
)
async def list_allocations(
    request: Request[Any, Any, Any],
    control: Control,
    key: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[bytes]:
    """All epochs, the newest first: who moved the traffic, when, and why."""
    return await page_of_history(
        control.pool, request, key, limit, cursor, store.list_epochs, epoch_view, lambda e: e.number
    )


@put(
    "/v1/experiments/{key:str}/allocation",
    opt={"permission": "write", "takes": AllocationChange, "gives": ExperimentView},
    tags=["allocations"],
)
async def set_allocation(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Set weights or traffic by hand: a new epoch, if at least 1 % of the traffic moves."""
    sent = await read_json(request)
    body = read_as(AllocationChange, sent)
    if body.weights is None and body.traffic is None:
        raise invalid([FieldProblem("weights", "missing", "give `weights`, `traffic` or both")])

    async def use_case(
        connection: store.Connection, record: ExperimentRecord, change: Change
    ) -> ExperimentRecord:
        weights = None if body.weights is None else checked_weights(body.weights, record)
        return await lifecycle.allocate(connection, record, weights, body.traffic, change)

    return await write_change(control, request, key, sent, body.reason, use_case)


def _mover(verb: str, use_case: UseCase, summary: str) -> HTTPRouteHandler:
    @post(
        f"/v1/experiments/{{key:str}}/{verb}",
        status_code=200,
        opt={"permission": "write", "takes": Reasoned, "gives": ExperimentView},
        tags=["experiments"],
        summary=summary,
        name=f"{verb}_experiment",
    )
    async def move_experiment(
        request: Request[Any, Any, Any], control: Control, key: PathKey
    ) -> Response[bytes]:
        sent = await read_json(request)
        body = read_as(Reasoned, sent)
        return await write_change(control, request, key, sent, body.reason, use_case)

    return move_experiment


def _mover_of_variant(
    verb: str,
    of_experiment: UseCase,
    of_variant: Callable[
        [store.Connection, ExperimentRecord, str, Change], Awaitable[ExperimentRecord]
    ],
    summary: str,
) -> HTTPRouteHandler:
    @post(
        f"/v1/experiments/{{key:str}}/{verb}",
        status_code=200,
        opt={"permission": "write", "takes": ReasonedOfVariant, "gives": ExperimentView},
        tags=["experiments"],
        summary=summary,
        name=f"{verb}_experiment",
    )
    async def move_experiment_or_variant(
        request: Request[Any, Any, Any], control: Control, key: PathKey
    ) -> Response[bytes]:
        sent = await read_json(request)
        body = read_as(ReasonedOfVariant, sent)

        async def use_case(
            connection: store.Connection, record: ExperimentRecord, change: Change
        ) -> ExperimentRecord:
            if body.variant is None:
                return await of_experiment(connection, record, change)
            return await of_variant(connection, record, body.variant, change)

        return await write_change(control, request, key, sent, body.reason, use_case)

    return move_experiment_or_variant


@post(
    "/v1/experiments/{key:str}/conclude",
    status_code=200,
    opt={"permission": "write", "takes": Conclusion, "gives": ExperimentView},
    tags=["experiments"],
)
async def conclude_experiment(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """End the run; `ship` is the variant that is answered from then on."""
    sent = await read_json(request)
    body = read_as(Conclusion, sent)
    return await write_change(
        control,
        request,
        key,
        sent,
        body.reason,
        lambda c, record, change: lifecycle.conclude(c, record, body.ship, change),
    )


ROUTES: Final[list[HTTPRouteHandler]] = [
    create_experiment,
    list_experiments,
    read_experiment,
    change_experiment,
    list_revisions,
    list_allocations,
    set_allocation,
    _mover("start", lifecycle.start, "Begin the next run"),
    _mover("pause", lifecycle.pause, "Let the control answer everybody for a while"),
    _mover_of_variant(
        "resume",
        lifecycle.resume,
        lifecycle.resume_variant,
        "Go on after a pause, slot for slot as before; with `variant`, give it its slots again "
        "after a rollback",
    ),
    _mover_of_variant(
        "rollback",
        lifecycle.roll_back,
        lifecycle.roll_back_variant,
        "End the run and give all traffic to the control; with `variant`, give the control the "
        "slots of this one, and let the run go on",
    ),
    _mover("archive", lifecycle.archive, "Put the experiment away; its reports stay"),
    conclude_experiment,
]
