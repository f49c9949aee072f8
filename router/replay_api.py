"""The door of replay: what a unit got, and why."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from msgspec import Meta

from experiments import lifecycle, store
from experiments.doors import NOT_JSON, json_response, principal_of
from experiments.problems import FieldProblem, invalid
from experiments.units import unit_problem
from router.elsewhere import MOST_EPOCHS
from router.items import MAX_AHEAD
from router.local_api import Local
from router.replay import Question, Replay, replay

PATIENCE: Final = 10.0
"""Seconds that Postgres has for all queries of a replay."""

_MOMENT: Final = Annotated[datetime, Meta(tz=True)]


@get(
    "/v1/replay",
    opt={"permission": "read", "gives": Replay},
    tags=["replay"],
    name="replay",
)
async def replay_assignment(
    request: Request[Any, Any, Any],
    local: Local,
    experiment: Annotated[
        str | None, QueryParameter(description="the experiment's key; always needed")
    ] = None,
    unit: Annotated[
        str | None,
        QueryParameter(description="the unit, as it is sent to `/v1/assign`; always needed"),
    ] = None,
    exposure: Annotated[
        str | None, QueryParameter(description="the id of an exposure: what it recorded")
    ] = None,
    epoch: Annotated[
        int | None,
        QueryParameter(ge=1, le=MOST_EPOCHS, description="an epoch: what the unit got in it"),
    ] = None,
    at: Annotated[
        str | None,
        QueryParameter(description="a time, RFC 3339 with an offset: what it got then; or now"),
    ] = None,
    attributes: Annotated[
        str | None, QueryParameter(description="a JSON object: what targeting read then")
    ] = None,
) -> Response[bytes]:
    """What a unit got, and why: by exposure, by epoch, or by time. By time the recorded exposure is
    preferred, and `source` says whether there was one."""
    now = local.data.clock()
    key, question = _question(experiment, unit, exposure, epoch, at, attributes, now)
    project = local.data.project(principal_of(request).project)
    async with asyncio.timeout(PATIENCE), store.borrow(local.pool) as connection:
        record = await lifecycle.find(connection, project.project, key)
        return json_response(await replay(connection, project, record, question))


def _question(
    experiment: str | None,
    unit: str | None,
    exposure: str | None,
    epoch: int | None,
    at: str | None,
    attributes: str | None,
    now: datetime,
) -> tuple[str, Question]:
    """The experiment's key and the question in a query.

    Raises:
        ProblemError: `invalid` with every wrong parameter.
    """
    problems = [
        FieldProblem(name, "missing", "is needed")
        for name, value in (("experiment", experiment), ("unit", unit))
        if value is None
    ]
    if unit is not None and (detail := unit_problem(unit)) is not None:
        problems.append(FieldProblem("unit", "value", detail))
    given = [
        name
        for name, value in (("exposure", exposure), ("epoch", epoch), ("at", at))
        if value is not None
    ]
    problems += [
        FieldProblem(name, "conflict", f"give either this or `{given[0]}`") for name in given[1:]
    ]
    name, moment, known = None, now, None
    if exposure is not None:
        try:
            name = UUID(exposure)
        except ValueError:
            problems.append(FieldProblem("exposure", "value", "must be the id of an exposure"))
    if at is not None:
        try:
            moment = msgspec.convert(at, _MOMENT).astimezone(UTC)
        except (msgspec.ValidationError, OverflowError):  # there is no year 0
            detail = "must be RFC 3339 with an offset, as 2026-02-03T04:05:06Z (`+` is sent as %2B)"
            problems.append(FieldProblem("at", "value", detail))
        if moment > now + MAX_AHEAD:
            detail = "must be at most 5 minutes ahead of our clock"
            problems.append(FieldProblem("at", "value", detail))
    if attributes is not None:
        try:
            known = msgspec.json.decode(attributes, type=dict[str, Any])
        except NOT_JSON:
            problems.append(FieldProblem("attributes", "value", "must be a JSON object"))
    if problems or experiment is None or unit is None:
        raise invalid(problems)
    return experiment, Question(unit, moment, name, epoch, known)


ROUTES: Final[list[HTTPRouteHandler]] = [replay_assignment]
