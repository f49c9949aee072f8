"""The doors of the control plane: experiments, their states and allocations, and keys."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from litestar import Request, Response, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter, SkipValidation
from msgspec import Meta
from redis.asyncio import Redis

from experiments import lifecycle, paths, store
from experiments.allocation import propensities, traffic_of
from experiments.announce import announce
from experiments.definition import WEIGHT_TOLERANCE, parse_definition
from experiments.doors import (
    Clock,
    Cursor,
    Limit,
    PathKey,
    json_response,
    principal_of,
    read_as,
    read_json,
)
from experiments.keys import ApiKey, Role, new_key
from experiments.lifecycle import Change
from experiments.model import (
    Duration,
    Experiment,
    Key,
    Reason,
    Share,
    State,
    Text,
    ThompsonPolicy,
    parse_duration,
)
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import Epoch, ExperimentRecord, Revision

T = TypeVar("T")
V = TypeVar("V")
_ETAG = re.compile(r'^(?:W/)?"(\d+)"$')


class ControlPlane(msgspec.Struct, frozen=True):
    """What the control plane works with, handed in."""

    pool: store.Pool
    redis: Redis
    clock: Clock
    random_bytes: Callable[[int], bytes]


Control: TypeAlias = NamedDependency[SkipValidation[ControlPlane]]


class Reasoned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a move of state."""

    reason: Reason


class Conclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `conclude`: the variant that is answered from then on."""

    reason: Reason
    ship: Key


class AllocationChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a manual reallocation; what is left out stays as it is."""

    reason: Reason
    weights: Annotated[dict[Key, Share], Meta(max_length=64)] | None = None
    traffic: Annotated[float, Meta(gt=0, le=1)] | None = None


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/keys`."""

    role: Role
    note: Text = ""
    expires_in: Duration | None = None


class KeyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key as it is shown; `key` is its text, given once, when it is made."""

    id: str
    project: str
    role: Role
    note: str
    created_at: datetime
    expires_at: datetime | None
    key: str = ""


class ExperimentView(msgspec.Struct, frozen=True):
    """An experiment as it stands. `weights` and `traffic` are what routers use now; those of the
    definition are what a run starts with."""

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


class EpochView(msgspec.Struct, frozen=True):
    """An epoch: what was allocated from `at` on, by whom and why."""

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


class Page(msgspec.Struct, Generic[V], frozen=True):
    """A part of a list; `next_cursor` leads to the next, and is null at the end."""

    items: list[V]
    next_cursor: str | None


def page(items: list[T], limit: int, view: Callable[[T], V], place: Callable[[T], int]) -> Page[V]:
    """A page of `limit` out of items fetched with `limit + 1`."""
    more = len(items) > limit
    shown = items[:limit]
    return Page([view(i) for i in shown], str(place(shown[-1])) if more else None)


def read_cursor(cursor: str | None) -> int | None:
    """Where a list goes on.

    Raises:
        ProblemError: `invalid` where the cursor is none of ours.
    """
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise invalid([FieldProblem("cursor", "value", "must be a `next_cursor` of this list")])
    return int(cursor)


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
    )


def _experiment_response(view: ExperimentView, status: int = 200) -> Response[bytes]:
    return json_response(view, status, {"ETag": f'"{view.revision}"'})


def _if_match(request: Request[Any, Any, Any]) -> int:
    header = request.headers.get("if-match")
    if header is None:
        raise ProblemError(
            "precondition-required",
            'Send the revision that you read as `If-Match: "N"`, so that no change is lost',
        )
    found = _ETAG.match(header.strip())
    if found is None or len(found.group(1)) > 9:
        raise ProblemError(
            "revision-mismatch", f'`If-Match` must be a revision such as "3", not {header}'
        )
    return int(found.group(1))


def _key_view(key: ApiKey, text: str = "") -> KeyView:
    return KeyView(key.id, key.project, key.role, key.note, key.created_at, key.expires_at, text)


def _checked_weights(weights: dict[Key, Share], record: ExperimentRecord) -> dict[str, float]:
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
        if key in needed and weights.get(key) == 0
    ]
    if not problems and abs(total - 1) > WEIGHT_TOLERANCE:
        problems.append(FieldProblem("weights", "value", f"must sum to 1, sum to {total:.6g}"))
    if problems:
        raise invalid(problems)
    return {key: weights[key] for key in known}


async def _change(
    control: ControlPlane,
    project: str,
    use_case: Callable[[store.Connection], Awaitable[ExperimentRecord]],
    status: int = 200,
) -> Response[bytes]:
    async with store.borrow(control.pool) as connection, connection.transaction():
        record = await use_case(connection)
        view = await _view(connection, record)
    await announce(control.redis, project)
    return _experiment_response(view, status)


@post(
    "/v1/experiments",
    opt={"permission": "write", "takes": Experiment, "gives": ExperimentView},
    tags=["experiments"],
)
async def create_experiment(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Define an experiment. It is a draft until it is started."""
    definition = parse_definition(await read_json(request))
    principal = principal_of(request)
    change = Change(principal.actor, "defined", control.clock())
    response = await _change(
        control,
        principal.project,
        lambda c: lifecycle.define(c, principal.project, definition, change),
        201,
    )
    response.headers["Location"] = f"/v1/experiments/{definition.key}"
    return response


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
) -> Response[bytes]:
    """The project's experiments, the newest first."""
    async with store.borrow(control.pool) as connection:
        records = await store.list_experiments(
            connection, principal_of(request).project, limit + 1, read_cursor(cursor), in_state
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
        return _experiment_response(await _view(connection, record))


@patch(
    "/v1/experiments/{key:str}",
    opt={"permission": "write", "takes": dict[str, Any], "gives": ExperimentView},
    tags=["experiments"],
)
async def change_experiment(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Change a definition by a merge patch; `If-Match` names the revision it was made to."""
    revision = _if_match(request)
    body = await read_json(request)
    principal = principal_of(request)
    reason = request.headers.get("x-reason", "changed")[:1_000]
    change = Change(principal.actor, reason, control.clock())
    return await _change(
        control,
        principal.project,
        lambda c: lifecycle.amend(c, principal.project, key, body, revision, change),
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
    async with store.borrow(control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        revisions = await store.list_revisions(
            connection, record.id, limit + 1, read_cursor(cursor)
        )
    return json_response(page(revisions, limit, lambda r: r, lambda r: r.number))


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
    async with store.borrow(control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        epochs = await store.list_epochs(connection, record.id, limit + 1, read_cursor(cursor))
    return json_response(page(epochs, limit, epoch_view, lambda e: e.number))


@put(
    "/v1/experiments/{key:str}/allocation",
    opt={"permission": "write", "takes": AllocationChange, "gives": ExperimentView},
    tags=["allocations"],
)
async def set_allocation(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Set weights or traffic by hand: a new epoch, if at least 1 % of the traffic moves."""
    body = read_as(AllocationChange, await read_json(request))
    if body.weights is None and body.traffic is None:
        raise invalid([FieldProblem("weights", "missing", "give `weights`, `traffic` or both")])
    principal = principal_of(request)
    change = Change(principal.actor, body.reason, control.clock())

    async def use_case(connection: store.Connection) -> ExperimentRecord:
        record = await lifecycle.find(connection, principal.project, key, lock=True)
        weights = None if body.weights is None else _checked_weights(body.weights, record)
        return await lifecycle.allocate(connection, record, weights, body.traffic, change)

    return await _change(control, principal.project, use_case)


def _mover(
    verb: str,
    use_case: Callable[[store.Connection, str, str, Change], Awaitable[ExperimentRecord]],
    summary: str,
) -> HTTPRouteHandler:
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
        body = read_as(Reasoned, await read_json(request))
        principal = principal_of(request)
        change = Change(principal.actor, body.reason, control.clock())
        return await _change(
            control, principal.project, lambda c: use_case(c, principal.project, key, change)
        )

    return move_experiment


async def roll_back(
    connection: store.Connection, project: str, key: str, change: Change
) -> ExperimentRecord:
    record = await lifecycle.find(connection, project, key, lock=True)
    return await lifecycle.roll_back(connection, record, change)


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
    body = read_as(Conclusion, await read_json(request))
    principal = principal_of(request)
    change = Change(principal.actor, body.reason, control.clock())
    return await _change(
        control,
        principal.project,
        lambda c: lifecycle.conclude(c, principal.project, key, body.ship, change),
    )


@post(
    "/v1/keys",
    opt={"permission": "administer", "takes": KeyRequest, "gives": KeyView},
    tags=["keys"],
)
async def create_key(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Make an API key for this project. Its text is shown this once."""
    body = read_as(KeyRequest, await read_json(request))
    now = control.clock()
    try:
        expires_at = None if body.expires_in is None else now + parse_duration(body.expires_in)
    except OverflowError as error:
        detail = "must end before the year 10000; without it, a key never expires"
        raise invalid([FieldProblem("expires_in", "value", detail)]) from error
    project = principal_of(request).project
    text, key = new_key(project, body.role, body.note, now, control.random_bytes, expires_at)
    async with store.borrow(control.pool) as connection, connection.transaction():
        await store.insert_key(connection, key)
    await announce(control.redis, project)
    return json_response(_key_view(key, text), 201)


@get("/v1/keys", opt={"permission": "administer", "gives": Page[KeyView]}, tags=["keys"])
async def list_keys(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """The live keys of this project, without their secrets."""
    async with store.borrow(control.pool) as connection:
        keys = await store.live_keys(connection, principal_of(request).project)
    return json_response(Page([_key_view(k) for k in keys], None))


@delete("/v1/keys/{key_id:str}", opt={"permission": "administer"}, tags=["keys"])
async def revoke_key(request: Request[Any, Any, Any], control: Control, key_id: PathKey) -> None:
    """Revoke a key: no router takes it any more."""
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection, connection.transaction():
        if not await store.revoke_key(connection, project, key_id, control.clock()):
            raise ProblemError("not-found", f"Project {project} has no live key {key_id!r}")
    await announce(control.redis, project)


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
    _mover("resume", lifecycle.resume, "Go on after a pause, slot for slot as before"),
    _mover("rollback", roll_back, "End the run and give all traffic to the control"),
    _mover("archive", lifecycle.archive, "Put the experiment away; its reports stay"),
    conclude_experiment,
    create_key,
    list_keys,
    revoke_key,
]
