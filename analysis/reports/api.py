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

from analysis.reports.report import Report
from analysis.reports.sheet import (
    MEDIA_TYPES,
    Format,
    Press,
    Reader,
    make_sheet,
    read_material,
    write_as,
)
from analysis.reports.snapshots import name_of_key
from experiments import store
from experiments.doors import PathKey, principal_of


class AnalysisPlane(msgspec.Struct, frozen=True):
    """What the doors of analysis work with, handed in. `lateness` is how late the controller lets
    an outcome come; `press` makes HTML of reports, None where nothing does."""

    pool: store.Pool
    clock: Callable[[], datetime]
    lateness: timedelta
    press: Press | None = None


Analysis: TypeAlias = NamedDependency[SkipValidation[AnalysisPlane]]


@get(
    "/v1/experiments/{key:str}/report",
    opt={"permission": "read", "gives": Report},
    tags=["analysis"],
)
async def read_report(
    request: Request[Any, Any, Any], analysis: Analysis, key: PathKey
) -> Response[bytes]:
    """The significance report of the current run: JSON, or HTML, Markdown or CSV by `Accept`."""
    wanted = wanted_format(request, analysis.press)
    press = analysis.press if wanted == "html" else None
    caller = principal_of(request)
    async with (
        store.borrow(analysis.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        material = await read_material(
            connection, caller.project, key, analysis.clock(), analysis.lateness, press
        )
        name = await name_of_key(connection, caller.project, caller.key_id)

    def make() -> bytes:
        return write_as(wanted, make_sheet(material, Reader(caller.actor, name)), press)

    # With many segments it takes the better part of a second, so it runs beside the event loop,
    # which has assignments to answer.
    content = await asyncio.to_thread(make)
    return Response(content, media_type=MEDIA_TYPES[wanted], headers={"Vary": "Accept"})


def wanted_format(request: Request[Any, Any, Any], press: Press | None) -> Format:
    """The format that a request asks for by `Accept`; JSON where it asks for none of ours."""
    offered = {kind: MEDIA_TYPES[kind] for kind in _FORMATS if kind != "html" or press is not None}
    best = request.accept.best_match(list(offered.values()))
    return next((kind for kind, media_type in offered.items() if media_type == best), "json")


_FORMATS: Final[tuple[Format, ...]] = ("json", "html", "markdown", "csv")
"""In the order in which we would rather give them."""


ROUTES: Final[list[HTTPRouteHandler]] = [read_report]
