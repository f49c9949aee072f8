"""The parts of an experiment's history, as pages of their own: what scripts load into the page, and
where links lead without them."""

import asyncio
from typing import Annotated, Any, Final, TypeAlias

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter

from analysis.control.decisions import read_whole
from dashboard.experiment import (
    evidence,
    history_allocation,
    history_settings,
    people,
    timeline,
)
from dashboard.plane import Pages
from experiments import lifecycle, store
from experiments.doors import PathKey, principal_of
from experiments.pages import read_cursor
from experiments.problems import ProblemError

_Number: TypeAlias = Annotated[str, PathParameter(pattern=r"^[0-9]{1,18}$(?!\n)")]
_Before: TypeAlias = Annotated[str | None, QueryParameter(name="before")]


@get("/experiments/{key:str}/decisions", include_in_schema=False, opt={"permission": "read"})
async def timeline_page(
    request: Request[Any, Any, Any],
    pages: Pages,
    key: PathKey,
    before: _Before = None,
    decisions: Annotated[str, QueryParameter()] = "",
) -> Response[bytes]:
    """A page of the timeline."""
    after = read_cursor(before)
    async with store.borrow(pages.control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        facts = await timeline.read(connection, record, decisions, after)
    shown = timeline.make(record, facts)
    return pages.renderer.page(
        request,
        _part_or_page(request, "decisions"),
        record=record,
        timeline=shown,
    )


@get(
    "/experiments/{key:str}/decisions/{number:str}",
    include_in_schema=False,
    opt={"permission": "read"},
)
async def decision_page(
    request: Request[Any, Any, Any], pages: Pages, key: PathKey, number: _Number
) -> Response[bytes]:
    """A decision with its evidence."""
    project = principal_of(request).project
    async with store.borrow(pages.control.pool) as connection:
        record = await lifecycle.find(connection, project, key)
        whole = await read_whole(connection, project, int(number))
        if whole is None or whole.experiment != record.key:
            raise ProblemError("not-found", f"{record.key} has no decision {int(number)}")
        numbers = {whole.epoch_before, whole.epoch_after} - {0}
        epochs = await history_allocation.read_epochs(connection, record, numbers)
        notes = await people.read_notes(connection, project, [whole.actor])
    variants = tuple(record.definition.weights)
    shown = await asyncio.to_thread(evidence.make, whole, variants)
    return pages.renderer.page(
        request,
        "experiment/_evidence.html" if _is_part(request) else "experiment/decision.html",
        record=record,
        row=timeline.row(record, whole, epochs, notes),
        evidence=shown,
    )


@get("/experiments/{key:str}/epochs", include_in_schema=False, opt={"permission": "read"})
async def epochs_page(
    request: Request[Any, Any, Any], pages: Pages, key: PathKey, before: _Before = None
) -> Response[bytes]:
    """A page of the list of epochs."""
    after = read_cursor(before)
    async with store.borrow(pages.control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        last = record.epoch + 1 if after is None else after
        epochs = await history_allocation.read_page(connection, record, last)
    return pages.renderer.page(
        request, _part_or_page(request, "epochs"), record=record, epochs=epochs
    )


@get("/experiments/{key:str}/revisions", include_in_schema=False, opt={"permission": "read"})
async def revisions_page(
    request: Request[Any, Any, Any], pages: Pages, key: PathKey, before: _Before = None
) -> Response[bytes]:
    """A page of the history of settings."""
    after = read_cursor(before)
    async with store.borrow(pages.control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        facts = await history_settings.read(connection, record, after)
    settings = await asyncio.to_thread(history_settings.make, record, facts)
    return pages.renderer.page(
        request, _part_or_page(request, "revisions"), record=record, settings=settings
    )


def _is_part(request: Request[Any, Any, Any]) -> bool:
    """Whether a script asks for the list alone, to put it into the page."""
    return request.headers.get("hx-request") == "true"


def _part_or_page(request: Request[Any, Any, Any], name: str) -> str:
    return f"experiment/{'_' if _is_part(request) else ''}{name}.html"


ROUTES: Final[list[HTTPRouteHandler]] = [
    timeline_page,
    decision_page,
    epochs_page,
    revisions_page,
]
