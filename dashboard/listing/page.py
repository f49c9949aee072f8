"""The page of all experiments."""

import asyncio
from typing import Any, Final

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from analysis.chronicle.kept import read_glances
from dashboard.listing.asked import PATH, Asked, read_asked
from dashboard.listing.order import select
from dashboard.listing.view import HEALTHS, make_view
from dashboard.plane import Pages
from dashboard.security import origin_of
from experiments import search, store
from experiments.doors import principal_of
from experiments.model import HOLDOUT
from experiments.proposals import store as proposals


@get(PATH, include_in_schema=False, opt={"permission": "read"})
async def list_page(request: Request[Any, Any, Any], pages: Pages) -> Response[bytes]:
    """The project's experiments: searched, filtered and ordered as the address says.

    It costs tens of microseconds for each experiment of the project, and the rows of one page.
    """
    asked, caller = read_asked(request.query_params), principal_of(request)
    async with (
        store.borrow(pages.control.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        found = await search.find_experiments(
            connection, caller.project, asked.text, asked.tag or None, asked.owner or None
        )
        glances = await read_glances(connection, [one.id for one in found])
        now = pages.control.clock()
        waiting = await proposals.awaited(connection, caller.project, now)
        selection = await asyncio.to_thread(select, asked, found, glances, now, proposals=waiting)
        splits = await search.read_splits(connection, [one.found.id for one in selection.listed])
        labels = await search.read_labels(connection, caller.project)
        holdout = await store.get_experiment(connection, caller.project, HOLDOUT)

    def drawn() -> Response[bytes]:
        view = make_view(
            asked,
            selection,
            splits,
            labels,
            is_new=not found and not asked.is_filtered,
            may_write=caller.may("write"),
            has_holdout=holdout is not None and holdout.state == "running",
        )
        origin = origin_of(request)
        return pages.renderer.page(request, "list.html", list=view, healths=HEALTHS, origin=origin)

    # Hundreds of rows take a tenth of a second, in which others are answered.
    page = await asyncio.to_thread(drawn)
    if request.headers.get("hx-request") == "true":
        page.headers["HX-Push-Url"] = _shown(asked)
    return page


def _shown(asked: Asked) -> str:
    """The address to show after a search: without the fields that are empty."""
    return asked.address(after=asked.after)


ROUTES: Final[list[HTTPRouteHandler]] = [list_page]
