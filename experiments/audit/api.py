"""The doors of the audit, for admins."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from litestar.response import Stream

from experiments import store
from experiments.audit.chain import Mark
from experiments.audit.log import Kind
from experiments.audit.trail import (
    AuditEntry,
    Filters,
    head_of,
    links,
    list_entries,
    moment_problem,
)
from experiments.doors import json_response, principal_of
from experiments.pages import Cursor, Limit, Page, page, read_cursor
from experiments.problems import FieldProblem, invalid
from experiments.writes import Control

NDJSON: Final = "application/x-ndjson"
_LONGEST: Final = 256
_TOO_LARGE: Final = 10**18


class Head(msgspec.Struct, frozen=True):
    """Where a chain ends: keep it elsewhere, and a chain that was cut off or written anew is
    found by it. `mark` is both, as `turnout audit verify --expect` takes it."""

    project: str
    number: int
    hash: str
    mark: str


Word: TypeAlias = Annotated[str | None, QueryParameter(max_length=_LONGEST)]
Moment: TypeAlias = Annotated[
    datetime | None, QueryParameter(description="a time: RFC 3339 with an offset")
]
After: TypeAlias = Annotated[
    int, QueryParameter(ge=0, lt=_TOO_LARGE, description="begin behind the entry of this number")
]


@get(
    "/v1/audit",
    opt={"permission": "administer", "gives": Page[AuditEntry]},
    tags=["audit"],
)
async def list_audit(
    request: Request[Any, Any, Any],
    control: Control,
    limit: Limit = 100,
    cursor: Cursor = None,
    kind: Annotated[Kind | None, QueryParameter()] = None,
    actor: Word = None,
    action: Word = None,
    target: Word = None,
    since: Moment = None,
    until: Moment = None,
) -> Response[bytes]:
    """What was done in this project, by whom and when, the newest first."""
    _check({"actor": actor, "action": action, "target": target}, {"since": since, "until": until})
    filters = Filters(kind, actor, action, target, since, until)
    project, before = principal_of(request).project, read_cursor(cursor)
    async with store.borrow(control.pool) as connection:
        entries = await list_entries(connection, project, limit + 1, before, filters)
    return json_response(page(entries, limit, lambda entry: entry, lambda entry: entry.number))


@get("/v1/audit/head", opt={"permission": "administer", "gives": Head}, tags=["audit"])
async def read_head(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Where this project's chain ends."""
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection:
        head = await head_of(connection, project)
    return json_response(Head(project, head.number, head.hash, str(head)))


@get(
    "/v1/audit/export",
    opt={"permission": "administer"},
    tags=["audit"],
    responses={200: ResponseSpec(str, description="A line of JSON an entry", media_type=NDJSON)},
)
async def export_audit(
    request: Request[Any, Any, Any], control: Control, after: After = 0
) -> Stream:
    """The chain as it stands, oldest first: all that it takes to verify it elsewhere."""
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection:
        head: Mark = await head_of(connection, project)
    lines = _lines(control.pool, project, after, head.number)
    return Stream(lines, media_type=NDJSON)


async def _lines(pool: store.Pool, project: str, after: int, through: int) -> AsyncIterator[bytes]:
    async for part in links(pool, project, after, through):
        yield msgspec.json.Encoder().encode_lines(part)


def _check(words: dict[str, str | None], moments: dict[str, datetime | None]) -> None:
    problems = [
        FieldProblem(name, "value", "must not contain U+0000")
        for name, word in words.items()
        if word is not None and "\0" in word
    ]
    problems += [
        FieldProblem(name, "value", wrong)
        for name, moment in moments.items()
        if moment is not None and (wrong := moment_problem(moment)) is not None
    ]
    if problems:
        raise invalid(problems)


ROUTES: Final[list[HTTPRouteHandler]] = [list_audit, read_head, export_audit]
