"""The doors of proposals: what waits for a second pair of eyes, and what becomes of it."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter

from experiments import store as experiments_store
from experiments.doors import json_response, principal_of, read_as, read_json
from experiments.pages import Cursor, Limit, Page, page, read_cursor
from experiments.proposals import gate, store
from experiments.proposals.acts import Acts
from experiments.proposals.model import Proposal, ProposalState, Settlement
from experiments.writes import Control, ControlPlane

ProposalId: TypeAlias = Annotated[
    str,
    PathParameter(pattern=r"^[0-9]{1,18}$(?!\n)", description="the number of a proposal"),
]
_Settle: TypeAlias = Callable[
    [ControlPlane, Request[Any, Any, Any], Acts, int, str], Awaitable[Response[bytes]]
]


@get("/v1/proposals", opt={"permission": "read", "gives": Page[Proposal]}, tags=["proposals"])
async def list_of_proposals(
    request: Request[Any, Any, Any],
    control: Control,
    limit: Limit = 100,
    cursor: Cursor = None,
    experiment: Annotated[
        str | None,
        QueryParameter(
            pattern=r"^([a-z0-9_.-]{1,64}|\$holdout)$(?!\n)",
            description="those of the experiment with this key alone",
        ),
    ] = None,
    in_state: Annotated[ProposalState | None, QueryParameter(name="state")] = None,
) -> Response[bytes]:
    """The project's proposals, the newest first."""
    after, project = read_cursor(cursor), principal_of(request).project
    async with experiments_store.borrow(control.pool) as connection:
        found = await store.list_proposals(
            connection,
            project,
            control.clock(),
            limit + 1,
            after=after,
            experiment=experiment,
            state=in_state,
        )
    return json_response(page(found, limit, lambda one: one, lambda one: one.id))


@get(
    "/v1/proposals/{proposal:str}",
    opt={"permission": "read", "gives": Proposal},
    tags=["proposals"],
)
async def read_proposal(
    request: Request[Any, Any, Any], control: Control, proposal: ProposalId
) -> Response[bytes]:
    """A proposal: what is to be done, by whom it was asked for and why, and what became of it."""
    number, project = int(proposal), principal_of(request).project
    async with experiments_store.borrow(control.pool) as connection:
        return json_response(await gate.find(connection, project, number, control.clock()))


def _settler(acts: Acts, verb: str, settle: _Settle, summary: str) -> HTTPRouteHandler:
    @post(
        f"/v1/proposals/{{proposal:str}}/{verb}",
        status_code=200,
        opt={"permission": "write", "takes": Settlement, "gives": Proposal},
        tags=["proposals"],
        summary=summary,
        name=f"{verb}_proposal",
    )
    async def settle_proposal(
        request: Request[Any, Any, Any], control: Control, proposal: ProposalId
    ) -> Response[bytes]:
        body = read_as(Settlement, await read_json(request))
        return await settle(control, request, acts, int(proposal), body.reason)

    return settle_proposal


def routes(acts: Acts) -> list[HTTPRouteHandler]:
    """The doors of proposals of these acts: all that there are, from every room."""
    return [
        list_of_proposals,
        read_proposal,
        _settler(acts, "approve", gate.approve, "Carry out what another has proposed"),
        _settler(acts, "reject", gate.reject, "Say no to a proposal"),
        _settler(acts, "withdraw", gate.withdraw, "Take one's own proposal back"),
    ]
