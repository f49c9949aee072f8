"""The pages of the editor: write a definition, have it checked, save it.

One mechanism serves browsers with and without scripts: whatever is typed or pressed sends the whole
form, and the answer is the editor anew. A script sends it while one types, to `/editor/check`, and
puts the answer into the page; without one the buttons send it to `/editor/save`.
"""

import asyncio
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from analysis.planning.observed import observe
from analysis.planning.plan import Observed
from dashboard.editor import planner
from dashboard.editor.documents import onto, sparse
from dashboard.editor.drafting import SAVES, drafted, read_draft
from dashboard.editor.layout import BEGINNING
from dashboard.editor.planner import Wish
from dashboard.editor.rehearsal import Rehearsal, rehearse
from dashboard.editor.versions import differences
from dashboard.editor.view import Work, editor_view
from dashboard.experiment.people import read_notes, who
from dashboard.plane import Pages, PagesPlane
from dashboard.security import Form
from experiments import lifecycle, ramps, store
from experiments.acts import AMEND
from experiments.definition import definition_to_builtins, parse_definition, patch_between
from experiments.doors import principal_of
from experiments.lifecycle import Change
from experiments.once import Answer
from experiments.problems import ProblemError
from experiments.proposals.acts import Subject
from experiments.proposals.gate import write_act
from experiments.writes import write

_MOST_REASON: Final = 1_000
_PART: Final = "editor/_editor.html"
_PAGE: Final = "editor/page.html"


@get("/editor", include_in_schema=False, opt={"permission": "write"})
async def show_editor(
    request: Request[Any, Any, Any],
    pages: Pages,
    experiment: Annotated[str | None, QueryParameter()] = None,
    copy: Annotated[str | None, QueryParameter()] = None,
) -> Response[bytes]:
    """The editor of a new experiment, of a copy of one, or of one that is there."""
    project = principal_of(request).project
    record, ramp, document = None, None, dict(BEGINNING)
    sent = {name: text for name, text in request.query_params.items() if name.startswith("p.")}
    if experiment is not None or copy is not None:
        async with store.borrow(pages.control.pool) as connection:
            found = await lifecycle.find(connection, project, experiment or copy or "")
            ramp = await ramps.read(connection, found.id, found.run)
        document = sparse(found.definition)
        if experiment is not None:
            record = found
        else:
            document = {k: v for k, v in document.items() if k not in {"key", "salt"}}
    revision = 0 if record is None else record.revision
    work = Work(record, ramp, revision, drafted(document), sent, is_tried=False)
    return await _show(request, pages, work, _PAGE)


@post("/editor/check", status_code=200, include_in_schema=False, opt={"permission": "write"})
async def check(request: Request[Any, Any, Any], pages: Pages, form: Form) -> Response[bytes]:
    """The editor as it looks after what was typed."""
    work = await _work(request, pages, dict(form.fields))
    return await _show(request, pages, work, _PART)


@post("/editor/save", status_code=200, include_in_schema=False, opt={"permission": "write"})
async def save(request: Request[Any, Any, Any], pages: Pages, form: Form) -> Response[bytes]:
    """Save what was written, or show what stops it; another button changes the form only."""
    sent = dict(form.fields)
    work = await _work(request, pages, sent)
    if sent.get("do") not in SAVES:
        return await _show(request, pages, work, _PAGE)
    work = msgspec.structs.replace(work, is_tried=True)
    if not work.draft.is_readable or work.draft.unreadable:
        return await _show(request, pages, work, _PAGE, 422)
    reason = sent.get("reason", "").strip()
    if work.record is not None and work.record.state != "draft" and not reason:
        work = msgspec.structs.replace(work, reason_wrong="say why: the revision keeps it")
        return await _show(request, pages, work, _PAGE, 422)
    try:
        to = await _save(request, pages, work, reason[:_MOST_REASON])
    except ProblemError as refused:
        if refused.type == "revision-mismatch":
            return await _mismatch(request, pages, work)
        if refused.type not in {"invalid", "exists", "conflict"}:
            raise
        if refused.type == "conflict":
            work = msgspec.structs.replace(work, refused=refused.detail)
        return await _show(request, pages, work, _PAGE, refused.status)
    if sent["do"] == "start":
        to += "/actions/start"
    return Response(b"", status_code=303, headers={"Location": to})


async def _work(request: Request[Any, Any, Any], pages: PagesPlane, sent: dict[str, str]) -> Work:
    """What a page has sent, read."""
    key, revision = sent.get("experiment", ""), sent.get("revision", "0")
    if not revision.isdecimal() or len(revision) > 9:
        raise ProblemError("malformed", "This is no form of the editor")
    record = ramp = None
    if key:
        async with store.borrow(pages.control.pool) as connection:
            record = await lifecycle.find(connection, principal_of(request).project, key)
            ramp = await ramps.read(connection, record.id, record.run)
    draft = await asyncio.to_thread(read_draft, sent)
    return Work(record, ramp, int(revision), draft, sent, sent.get("tried") == "1")


async def _save(request: Request[Any, Any, Any], pages: PagesPlane, work: Work, reason: str) -> str:
    """Save as the API does; the page of what was saved.

    Raises:
        ProblemError: what the API would answer.
    """
    document, principal = work.draft.document, principal_of(request)
    if work.record is None:
        definition = parse_definition(document)

        async def act(connection: store.Connection) -> Answer:
            change = Change(principal.actor, "defined", pages.control.clock())
            await lifecycle.define(connection, principal.project, definition, change)
            return Answer(201, {}, b"")

        target = f"experiments/{definition.key}"
        await write(
            pages.control, request, document, act, action="experiment.create", target=target
        )
        return f"/experiments/{quote(definition.key, safe='')}"

    revision = work.revision

    def expect(subject: Subject) -> None:
        if subject.revision != revision:
            detail = f"The latest revision is {subject.revision}, this one is of {revision}"
            raise ProblemError("revision-mismatch", detail)

    record = work.record
    patch = patch_between(definition_to_builtins(record.definition), document)
    asked = AMEND.read(principal.project, record.key, patch, reason or "changed")
    answer = await write_act(pages.control, request, AMEND, asked, expect=expect)
    proposed = "?done=proposed" if answer.status_code == 202 else ""
    return f"/experiments/{quote(record.key, safe='')}{proposed}"


async def _show(
    request: Request[Any, Any, Any],
    pages: PagesPlane,
    work: Work,
    template: str,
    status: int = 200,
) -> Response[bytes]:
    """The editor, with all that can be said of what was written."""
    document = work.draft.document
    async with store.borrow(pages.control.pool) as connection:
        rehearsal = await rehearse(connection, principal_of(request).project, work.record, document)
        has_data = work.record is not None and work.record.run > 0
        definition = planner.plannable(document, rehearsal.problems)
        wish = planner.wish_of(work.sent, definition, has_data=has_data)
        wish, observed = await _observe(pages, connection, work, wish)
    return await asyncio.to_thread(
        _rendered, request, pages, work, rehearsal, wish, observed, template, status
    )


async def _observe(
    pages: PagesPlane, connection: store.Connection, work: Work, wish: Wish
) -> tuple[Wish, Observed | None]:
    """What the experiment has shown so far, for what the planner was not told."""
    if work.record is None or work.record.run == 0 or wish.request is None:
        return wish, None
    try:
        now = pages.control.clock()
        return wish, await observe(connection, work.record, wish.request, now)
    except ProblemError as refused:
        if wish.request.metric is not None:
            return wish, None
        waits = "; ".join(problem.detail for problem in refused.errors)
        return Wish(wish.definition, None, f"{waits[:1].upper()}{waits[1:]}."), None


def _rendered(
    request: Request[Any, Any, Any],
    pages: PagesPlane,
    work: Work,
    rehearsal: Rehearsal,
    wish: Wish,
    observed: Observed | None,
    template: str,
    status: int,
) -> Response[bytes]:
    plan, waits = planner.answer(wish, observed)
    view = editor_view(work, rehearsal, plan, planner.view_of(work.sent, wish, plan, waits))
    return pages.renderer.page(request, template, status, editor=view)


async def _mismatch(
    request: Request[Any, Any, Any], pages: PagesPlane, work: Work
) -> Response[bytes]:
    """The page that tells of a change by somebody else, and how one goes on."""
    async with store.borrow(pages.control.pool) as connection:
        record = await lifecycle.find(
            connection, principal_of(request).project, work.sent.get("experiment", "")
        )
        [latest] = await store.list_revisions(connection, record.id, 1, None)
        notes = await read_notes(connection, record.project, [latest.actor])
        past = await store.list_revisions(connection, record.id, 1, work.revision + 1)
    theirs, mine = sparse(record.definition), work.draft.document
    before = sparse(past[0].definition) if past else theirs
    merged = drafted(onto(before, mine, theirs))
    return pages.renderer.page(
        request,
        "editor/mismatch.html",
        412,
        record=record,
        latest=latest,
        by=who(latest.actor, "", notes).name,
        revision=work.revision,
        differences=differences(before, theirs, mine),
        merged=merged,
        mine=work.draft,
        reason=work.sent.get("reason", ""),
    )


ROUTES: Final[list[HTTPRouteHandler]] = [show_editor, check, save]
