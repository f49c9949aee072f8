"""The door of the significance report."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation

from analysis.reports.facts import read_facts
from analysis.reports.markdown import render
from analysis.reports.model import Facts
from analysis.reports.report import Report, make_report
from analysis.reports.table import to_csv
from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, principal_of

_TEXTS: Final[dict[str, Callable[[Report], str]]] = {"text/markdown": render, "text/csv": to_csv}
"""What a report may be besides JSON, by media type."""


class AnalysisPlane(msgspec.Struct, frozen=True):
    """What the doors of analysis work with, handed in. `lateness` is how late the controller lets
    an outcome come."""

    pool: store.Pool
    clock: Callable[[], datetime]
    lateness: timedelta


Analysis: TypeAlias = NamedDependency[SkipValidation[AnalysisPlane]]


@get(
    "/v1/experiments/{key:str}/report",
    opt={"permission": "read", "gives": Report},
    tags=["analysis"],
)
async def read_report(
    request: Request[Any, Any, Any], analysis: Analysis, key: PathKey
) -> Response[bytes]:
    """The significance report of the current run: JSON, or Markdown or CSV by `Accept`."""
    async with (
        store.borrow(analysis.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        record = await lifecycle.find(connection, principal_of(request).project, key)
        facts = await read_facts(connection, record, analysis.clock(), analysis.lateness)
    wanted = request.accept.best_match(["application/json", *_TEXTS])
    return await asyncio.to_thread(_answer, facts, wanted)


def _answer(facts: Facts, wanted: str | None) -> Response[bytes]:
    """The report as the media type that is wanted. With many segments it takes the better part of a
    second, so it runs beside the event loop, which has assignments to answer."""
    report = make_report(facts)
    if wanted in _TEXTS:
        return Response(_TEXTS[wanted](report).encode(), media_type=wanted)
    return json_response(report)


ROUTES: Final[list[HTTPRouteHandler]] = [read_report]
