"""The doors of analysis: the significance report and the ledger of decisions."""

from typing import Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation

from analysis.reports.facts import read_facts
from analysis.reports.markdown import render
from analysis.reports.report import Report, make_report
from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, principal_of
from experiments.pages import Cursor, Limit, Page, page_of_history
from experiments.records import Decision

MARKDOWN: Final = "text/markdown"


class AnalysisPlane(msgspec.Struct, frozen=True):
    """What the doors of analysis work with, handed in."""

    pool: store.Pool


Analysis: TypeAlias = NamedDependency[SkipValidation[AnalysisPlane]]


@get(
    "/v1/experiments/{key:str}/report",
    opt={"permission": "read", "gives": Report},
    tags=["analysis"],
)
async def read_report(
    request: Request[Any, Any, Any], analysis: Analysis, key: PathKey
) -> Response[bytes]:
    """The significance report of the current run: JSON, or Markdown by `Accept`."""
    async with (
        store.borrow(analysis.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        record = await lifecycle.find(connection, principal_of(request).project, key)
        report = make_report(await read_facts(connection, record))
    if request.accept.best_match(["application/json", MARKDOWN]) == MARKDOWN:
        return Response(render(report).encode(), media_type=MARKDOWN)
    return json_response(report)


@get(
    "/v1/experiments/{key:str}/decisions",
    opt={"permission": "read", "gives": Page[Decision]},
    tags=["analysis"],
)
async def list_decisions(
    request: Request[Any, Any, Any],
    analysis: Analysis,
    key: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[bytes]:
    """What the controller decided, the newest first, each with the evidence to compute it again."""
    return await page_of_history(
        analysis.pool,
        request,
        key,
        limit,
        cursor,
        store.list_decisions,
        lambda d: d,
        lambda d: d.id,
    )


ROUTES: Final[list[HTTPRouteHandler]] = [read_report, list_decisions]
