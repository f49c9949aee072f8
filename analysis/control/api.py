"""The doors of the ledger: what was decided, by what rule or whose hand, on what evidence; and all
that is needed to compute it again."""

import asyncio
from typing import Annotated, Any, Final, TypeAlias, get_args

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter

from analysis.control.decisions import read_around, read_whole, view
from analysis.control.recorded import DecisionView, WholeDecision
from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, principal_of
from experiments.pages import Cursor, Limit, Page, page, read_cursor
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import DecidedBy, DecisionKind
from experiments.writes import Control

_Number: TypeAlias = Annotated[
    str, PathParameter(pattern=r"^[0-9]{1,18}$(?!\n)", description="the id of a decision")
]
_KINDS: Final[tuple[str, ...]] = get_args(DecisionKind)
_RULES: Final[tuple[str, ...]] = get_args(DecidedBy)
_Kind: TypeAlias = Annotated[
    str | None, QueryParameter(enum=_KINDS, description="those of this kind only")
]
_Rule: TypeAlias = Annotated[
    str | None,
    QueryParameter(enum=_RULES, description="those of this rule only, or of a hand: `manual`"),
]
_Hold: TypeAlias = Annotated[
    bool, QueryParameter(description="those that only hold, too; `false` leaves them out")
]


@get(
    "/v1/experiments/{key:str}/decisions",
    opt={"permission": "read", "gives": Page[DecisionView]},
    tags=["analysis"],
)
async def list_decisions(
    request: Request[Any, Any, Any],
    control: Control,
    key: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
    kind: _Kind = None,
    rule: _Rule = None,
    hold: _Hold = True,
) -> Response[bytes]:
    """The ledger of decisions, the newest first: what the controller did or advised, when it began
    to hold for another reason, and what hands did."""
    wrong = [*_unknown("kind", kind, _KINDS), *_unknown("rule", rule, _RULES)]
    if wrong:
        raise invalid(wrong)
    async with store.borrow(control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        decisions = await store.list_decisions(
            connection, record.id, limit + 1, read_cursor(cursor), kind=kind, rule=rule, holds=hold
        )
        around = await read_around(connection, record, decisions)

    def shown() -> Page[DecisionView]:
        standings = around.standings()
        return page(decisions, limit, lambda d: view(record, d, standings), lambda d: d.id)

    # Beside the event loop, which has assignments to answer: hundreds of allocations are long.
    return json_response(await asyncio.to_thread(shown))


def _unknown(name: str, given: str | None, known: tuple[str, ...]) -> list[FieldProblem]:
    """What is wrong with a filter: it would find nothing for ever."""
    if given is None or given in known:
        return []
    return [FieldProblem(name, "value", f"there are {', '.join(known)}")]


@get(
    "/v1/decisions/{number:str}",
    opt={"permission": "read", "gives": WholeDecision},
    tags=["analysis"],
)
async def read_decision(
    request: Request[Any, Any, Any], control: Control, number: _Number
) -> Response[bytes]:
    """A decision with all that it takes to compute it again."""
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection:
        whole = await read_whole(connection, project, int(number))
    if whole is None:
        raise ProblemError("not-found", f"Project {project} has no decision {int(number)}")
    return json_response(whole)


ROUTES: Final[list[HTTPRouteHandler]] = [list_decisions, read_decision]
