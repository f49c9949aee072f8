"""Snapshots of reports: taken by a form, shown for good; and the menu to export and share."""

from typing import Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from analysis.reports.sheet import SUFFIXES, Format
from analysis.reports.snapshots import Snapshot, find_snapshot, list_snapshots, read_file
from analysis.reports.snapshots_api import (
    SnapshotBody,
    SnapshotView,
    send_file,
    take_snapshot,
)
from dashboard.plane import Pages
from dashboard.security import HEADERS, Form, origin_of
from experiments import store
from experiments.doors import PathKey, principal_of, read_as
from experiments.records import ExperimentRecord
from experiments.store import Connection

MOST_SHOWN: Final = 10
"""Snapshots that the menu lists; the API lists all."""
FORMATS: Final[tuple[tuple[Format, str, str], ...]] = (
    ("html", "HTML", "one file that stands alone: to print, to mail"),
    ("markdown", "Markdown", "for tickets and chats"),
    ("csv", "CSV", "a row for each comparison and reading"),
    ("json", "JSON", "all numbers, as the API gives them"),
)


class Download(msgspec.Struct, frozen=True):
    """A file to take away: where it is, its format, and what that is good for."""

    href: str
    label: str
    use: str


class Share(msgspec.Struct, frozen=True):
    """What the menu "Export & share" shows. `is_more` says that there are older snapshots."""

    experiment: str
    downloads: tuple[Download, ...]
    snapshots: tuple[Snapshot, ...]
    is_more: bool


async def read_share(connection: Connection, record: ExperimentRecord) -> Share:
    """What `experiment/_share.html` takes as `share`."""
    found = await list_snapshots(connection, record.id, MOST_SHOWN + 1, None)
    return Share(
        experiment=record.key,
        downloads=downloads(f"/experiments/{record.key}"),
        snapshots=tuple(found[:MOST_SHOWN]),
        is_more=len(found) > MOST_SHOWN,
    )


def downloads(base: str) -> tuple[Download, ...]:
    """The files of a report, or of a snapshot, below its address."""
    return tuple(
        Download(f"{base}/report.{SUFFIXES[kind]}", label, use) for kind, label, use in FORMATS
    )


@post(
    "/experiments/{key:str}/snapshots",
    status_code=200,
    include_in_schema=False,
    opt={"permission": "read"},
)
async def take(
    request: Request[Any, Any, Any], pages: Pages, form: Form, key: PathKey
) -> Response[bytes]:
    """Take a snapshot by the same use case as the API, and show it."""
    sent = {"note": form.fields.get("note", "").strip()}
    body = read_as(SnapshotBody, sent)
    answer = await take_snapshot(pages.control, pages.analysis, request, key, sent, body.note)
    taken = msgspec.json.decode(answer.content, type=SnapshotView)
    return Response(b"", status_code=303, headers={"Location": f"/snapshots/{taken.id}"})


@get("/snapshots/{id:str}", include_in_schema=False, opt={"permission": "read"})
async def show(
    request: Request[Any, Any, Any],
    pages: Pages,
    id: PathKey,  # noqa: A002 - the name in the path
) -> Response[bytes]:
    """A snapshot: what it is of, its files, and the page as it was."""
    async with store.borrow(pages.control.pool) as connection:
        snapshot = await find_snapshot(connection, principal_of(request).project, id)
    page = pages.renderer.page(
        request,
        "snapshot.html",
        snapshot=snapshot,
        downloads=downloads(f"/snapshots/{snapshot.id}"),
        address=f"{origin_of(request)}{request.url.path}",
    )
    # The one page that holds another, which is of ours, and has no rights.
    page.headers["Content-Security-Policy"] = (
        HEADERS["Content-Security-Policy"] + "; frame-src 'self'"
    )
    return page


def _file(wanted: Format) -> HTTPRouteHandler:
    @get(
        f"/snapshots/{{id:str}}/report.{SUFFIXES[wanted]}",
        include_in_schema=False,
        opt={"permission": "read"},
        name=f"snapshot_{wanted}",
    )
    async def send(
        request: Request[Any, Any, Any],
        pages: Pages,
        id: PathKey,  # noqa: A002 - the name in the path
    ) -> Response[bytes]:
        project = principal_of(request).project
        async with store.borrow(pages.control.pool) as connection:
            snapshot = await find_snapshot(connection, project, id)
            content = await read_file(connection, project, id, wanted)
        return send_file(snapshot, wanted, content, attached=wanted != "html")

    return send


ROUTES: Final[list[HTTPRouteHandler]] = [
    take,
    show,
    *(_file(kind) for kind, _, _ in FORMATS),
]
