"""The doors of analysis: the significance report and the ledger of decisions."""

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Dependency

from analysis.facts import read_facts
from analysis.markdown import render
from analysis.report import make_report
from experiments import lifecycle, store
from experiments.api import Limit, page, read_cursor
from experiments.doors import json_response, principal_of

MARKDOWN: Final = "text/markdown"


class AnalysisPlane(msgspec.Struct, frozen=True):
    """What the doors of analysis work with, handed in."""

    pool: store.Pool


Analysis: TypeAlias = Annotated[AnalysisPlane, Dependency(skip_validation=True)]


@get("/v1/experiments/{key:str}/report", opt={"permission": "read"}, tags=["analysis"])
async def read_report(
    request: Request[Any, Any, Any], analysis: Analysis, key: str
) -> Response[bytes]:
    """The significance report of the current run: JSON, or Markdown by `Accept`."""
    async with analysis.pool.acquire() as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        report = make_report(await read_facts(connection, record))
    if request.accept.best_match(["application/json", MARKDOWN]) == MARKDOWN:
        return Response(render(report).encode(), media_type=f"{MARKDOWN}; charset=utf-8")
    return json_response(report)


@get("/v1/experiments/{key:str}/decisions", opt={"permission": "read"}, tags=["analysis"])
async def list_decisions(
    request: Request[Any, Any, Any],
    analysis: Analysis,
    key: str,
    limit: Limit = 100,
    cursor: str | None = None,
) -> Response[bytes]:
    """What the controller decided, the newest first, each with the evidence to compute it again."""
    async with analysis.pool.acquire() as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        decisions = await store.list_decisions(
            connection, record.id, limit + 1, read_cursor(cursor)
        )
    return json_response(page(decisions, limit, lambda d: d, lambda d: d.id))


ROUTES: Final[list[HTTPRouteHandler]] = [read_report, list_decisions]
