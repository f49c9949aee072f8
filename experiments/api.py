"""The doors of experiments: defined, read, changed, moved from state to state."""

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, patch, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from experiments import lifecycle, store
from experiments.acts import (
    ALLOCATE,
    AMEND,
    ARCHIVE,
    CONCLUDE,
    PAUSE,
    RESUME,
    ROLL_BACK,
    START,
    AllocationChange,
)
from experiments.definition import parse_definition
from experiments.doors import PathKey, json_response, principal_of, read_json
from experiments.lifecycle import Change
from experiments.model import Experiment, State
from experiments.once import Answer
from experiments.pages import Cursor, Limit, Page, page, page_of_history, read_cursor
from experiments.problems import ProblemError
from experiments.proposals.acts import Act, never
from experiments.proposals.gate import PROPOSES, do
from experiments.records import Revision
from experiments.revisions import etag
from experiments.views import EpochView, ExperimentView, epoch_view, experiment_view
from experiments.writes import Control, write


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
        view = await experiment_view(connection, record)
        headers = {**etag(view.revision), "Location": f"/v1/experiments/{definition.key}"}
        return Answer(201, headers, msgspec.json.encode(view))

    target = f"experiments/{definition.key}"
    return await write(control, request, body, act, action="experiment.create", target=target)


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
        views = {r.id: await experiment_view(connection, r) for r in records[:limit]}
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
        view = await experiment_view(connection, record)
    return json_response(view, headers=etag(view.revision))


@patch(
    "/v1/experiments/{key:str}",
    opt={"permission": "write", "takes": dict[str, Any], "gives": ExperimentView, **PROPOSES},
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
    return await do(control, request, AMEND, key, body, reason)


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
    opt={"permission": "write", "takes": AllocationChange, "gives": ExperimentView, **PROPOSES},
    tags=["allocations"],
)
async def set_allocation(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Set weights or traffic by hand: a new epoch, if at least 1 % of the traffic moves."""
    return await do(control, request, ALLOCATE, key, await read_json(request))


def _mover(act: Act, summary: str) -> HTTPRouteHandler:
    @post(
        f"/v1/experiments/{{key:str}}/{act.verb}",
        status_code=200,
        opt={
            "permission": "write",
            "takes": act.takes,
            "gives": ExperimentView,
            **({} if act.demand is never else PROPOSES),
        },
        tags=["experiments"],
        summary=summary,
        name=f"{act.verb}_experiment",
    )
    async def move_experiment(
        request: Request[Any, Any, Any], control: Control, key: PathKey
    ) -> Response[bytes]:
        return await do(control, request, act, key, await read_json(request))

    return move_experiment


ROUTES: Final[list[HTTPRouteHandler]] = [
    create_experiment,
    list_experiments,
    read_experiment,
    change_experiment,
    list_revisions,
    list_allocations,
    set_allocation,
    _mover(START, "Begin the next run"),
    _mover(PAUSE, "Let the control answer everybody for a while"),
    _mover(
        RESUME,
        "Go on after a pause, slot for slot as before; with `variant`, give it its slots again "
        "after a rollback",
    ),
    _mover(
        ROLL_BACK,
        "End the run and give all traffic to the control; with `variant`, give the control the "
        "slots of this one, and let the run go on",
    ),
    _mover(ARCHIVE, "Put the experiment away; its reports stay"),
    _mover(CONCLUDE, "End the run; `ship` is the variant that is answered from then on"),
]
