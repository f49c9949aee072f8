"""The door of the course: how the figures of a run went."""

import asyncio
from typing import Annotated, Any, Final, TypeAlias

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from analysis.chronicle.kept import read_course
from analysis.chronicle.model import Course
from analysis.reports.api import Analysis
from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, principal_of
from experiments.problems import ProblemError

_Run: TypeAlias = Annotated[
    int | None, QueryParameter(ge=1, description="the number of a run; the current one unless told")
]
_Metrics: TypeAlias = Annotated[
    list[str] | None,
    QueryParameter(
        name="metric", description="the key of a metric that is wanted; may be repeated"
    ),
]


@get(
    "/v1/experiments/{key:str}/course",
    opt={"permission": "read", "gives": Course},
    tags=["analysis"],
    name="read_course",
)
async def course(
    request: Request[Any, Any, Any],
    analysis: Analysis,
    key: PathKey,
    run: _Run = None,
    metrics: _Metrics = None,
) -> Response[bytes]:
    """How a run went: what its report said of every comparison, from its start on, at no more than
    241 times; as it stood then, which later data do not change."""
    async with store.borrow(analysis.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        if run is not None and run > record.run:
            raise ProblemError("not-found", f"{record.key} has no run {run}, but {record.run}")
        found = await read_course(connection, record, run, metrics)
    return await asyncio.to_thread(json_response, found)


ROUTES: Final[list[HTTPRouteHandler]] = [course]
