"""The report as a file to take away: HTML that stands alone, Markdown, CSV and JSON."""

import asyncio
from typing import Any, Final

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from analysis.reports.sheet import (
    MEDIA_TYPES,
    SUFFIXES,
    Format,
    Reader,
    file_name,
    make_sheet,
    read_material,
    write_as,
)
from dashboard.plane import Pages
from dashboard.rendering import VISITOR
from dashboard.sessions import Visitor
from experiments import store
from experiments.doors import PathKey


def _download(wanted: Format) -> HTTPRouteHandler:
    @get(
        f"/experiments/{{key:str}}/report.{SUFFIXES[wanted]}",
        include_in_schema=False,
        opt={"permission": "read"},
        name=f"download_{wanted}",
    )
    async def download(
        request: Request[Any, Any, Any], pages: Pages, key: PathKey
    ) -> Response[bytes]:
        visitor: Visitor = request.scope["state"][VISITOR]
        analysis = pages.analysis
        press = analysis.press if wanted == "html" else None
        async with (
            store.borrow(analysis.pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            material = await read_material(
                connection,
                visitor.principal.project,
                key,
                analysis.clock(),
                analysis.lateness,
                press,
            )

        def make() -> Response[bytes]:
            sheet = make_sheet(material, Reader(visitor.principal.actor, visitor.name))
            name = file_name(sheet, wanted)
            return Response(
                write_as(wanted, sheet, press),
                media_type=MEDIA_TYPES[wanted],
                headers={"Content-Disposition": f'attachment; filename="{name}"'},
            )

        return await asyncio.to_thread(make)

    return download


ROUTES: Final[list[HTTPRouteHandler]] = [
    _download("html"),
    _download("markdown"),
    _download("csv"),
    _download("json"),
]
