"""The page of the audit, for admins: what was done in the project, by whom and when."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from dashboard.experiment.people import read_notes, who
from dashboard.plane import Pages
from experiments import store
from experiments.audit.log import KINDS, Kind
from experiments.audit.trail import Filters, head_of, links, list_entries, moment_problem
from experiments.doors import principal_of

PAGE: Final = 100
_LONGEST: Final = 256
_DIGITS: Final = 18
_WORDS: Final = ("actor", "action", "target")
_KIND_WORDS: Final[Mapping[str, str]] = {
    "write": "Writes",
    "sign_in": "Sign-ins",
    "key": "Keys",
    "decision": "Decisions",
    "command": "Commands",
}


@get("/audit", include_in_schema=False, opt={"permission": "administer"})
async def show_audit(request: Request[Any, Any, Any], pages: Pages) -> Response[bytes]:
    """The entries that were asked for, the newest first."""
    asked = {
        name: text.strip()[:_LONGEST].replace("\0", "")
        for name, text in request.query_params.items()
        if name in {"kind", "since", "until", "before", *_WORDS} and text.strip()
    }
    wrong: dict[str, str] = {}
    since, until = _day(asked, "since", wrong), _day(asked, "until", wrong)
    kind = asked.get("kind")
    filters = Filters(
        kind=cast(Kind, kind) if kind in KINDS else None,
        actor=asked.get("actor"),
        action=asked.get("action"),
        target=asked.get("target"),
        since=since,
        until=until,
    )
    number = asked.get("before", "")
    is_number = number.isascii() and number.isdigit() and len(number) <= _DIGITS
    project = principal_of(request).project
    async with store.borrow(pages.control.pool) as connection:
        found = await list_entries(
            connection, project, PAGE + 1, int(number) if is_number else None, filters
        )
        head = await head_of(connection, project)
        notes = await read_notes(connection, project, {entry.actor for entry in found})
    shown = found[:PAGE]
    older = ""
    if len(found) > PAGE:
        older = "/audit?" + urlencode({**asked, "before": shown[-1].number})
    return pages.renderer.page(
        request,
        "admin/audit.html",
        entries=[(e, who(e.actor, "", notes), _detail(e.detail)) for e in shown],
        asked=asked,
        wrong=wrong,
        kinds=[(each, _KIND_WORDS[each]) for each in KINDS],
        older=older,
        head=head,
    )


@get("/audit/export", include_in_schema=False, opt={"permission": "administer"})
async def export(request: Request[Any, Any, Any], pages: Pages) -> Stream:
    """The whole chain, the oldest first, as `GET /v1/audit/export` gives it."""
    project, pool = principal_of(request).project, pages.control.pool
    async with store.borrow(pool) as connection:
        head = await head_of(connection, project)

    async def lines() -> AsyncIterator[bytes]:
        async for part in links(pool, project, 0, head.number):
            yield msgspec.json.Encoder().encode_lines(part)

    name = f'attachment; filename="audit-{project}-{head.number}.ndjson"'
    headers = {"Content-Disposition": name}
    return Stream(lines(), media_type="application/x-ndjson", headers=headers)


def _day(asked: Mapping[str, str], name: str, wrong: dict[str, str]) -> datetime | None:
    """A time in UTC, as a browser's field or a person writes it; a day is its beginning."""
    text = asked.get(name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        wrong[name] = "must be a date, such as 2026-07-01"
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    if (problem := moment_problem(found)) is not None:
        wrong[name] = problem
        return None
    return found


def _detail(detail: Mapping[str, Any]) -> str:
    """What else there is to know, indented."""
    return msgspec.json.format(msgspec.json.encode(detail), indent=2).decode() if detail else ""


ROUTES: Final[list[HTTPRouteHandler]] = [show_audit, export]
