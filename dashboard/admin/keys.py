"""The page of API keys, for admins. The text of a key is in one answer, to the one who has made it:
in no address, in no cache, and nowhere in the database."""

from typing import Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from dashboard.experiment.people import read_notes, who
from dashboard.plane import Pages, PagesPlane
from dashboard.security import Form, as_api, once_of
from experiments import store
from experiments.doors import PathKey, principal_of
from experiments.keys import PERMISSIONS, ROLES
from experiments.keys_api import KeyView, end_key, make_key
from experiments.problems import FieldProblem, ProblemError

_KEY_BYTES: Final = 16
_REFUSED: Final = frozenset({"invalid", "conflict", "forbidden"})
WHAT: Final = {
    "client": "evaluates only: for browsers and apps",
    "service": "assigns and records",
    "analyst": "reads",
    "editor": "reads and writes",
    "admin": "all, keys and the audit, too",
}


@get("/keys", include_in_schema=False, opt={"permission": "administer"})
async def show_keys(request: Request[Any, Any, Any], pages: Pages) -> Response[bytes]:
    """The live keys, and a form that makes one."""
    return await _page(request, pages, {})


@post("/keys", status_code=200, include_in_schema=False, opt={"permission": "administer"})
async def create(request: Request[Any, Any, Any], pages: Pages, form: Form) -> Response[bytes]:
    """Make a key; the answer shows its text, this once."""
    fields = dict(form.fields)
    sent: dict[str, Any] = {"role": fields.get("role", ""), "note": fields.get("note", "").strip()}
    if fields.get("expires_in", "").strip():
        sent["expires_in"] = fields["expires_in"].strip()
    if form.lists.get("scope"):
        sent["scope"] = list(form.lists["scope"])
    limit = fields.get("rate_limit", "").strip()
    if limit:
        sent["rate_limit"] = int(limit) if limit.isascii() and limit.isdigit() else limit
    try:
        answer = await make_key(pages.control, as_api(request, once_of(form)), sent)
    except ProblemError as problem:
        if problem.type not in _REFUSED:
            raise
        return await _page(request, pages, fields, problem=problem, chosen=form.lists)
    return await _page(request, pages, {}, made=msgspec.json.decode(answer.content, type=KeyView))


@get("/keys/{key_id:str}/revoke", include_in_schema=False, opt={"permission": "administer"})
async def ask_to_revoke(
    request: Request[Any, Any, Any], pages: Pages, key_id: PathKey
) -> Response[bytes]:
    """Whether the key is to be revoked, and what that means."""
    caller = principal_of(request)
    async with store.borrow(pages.control.pool) as connection:
        keys = await store.live_keys(connection, caller.project)
    found = next((key for key in keys if key.id == key_id), None)
    if found is None:
        raise ProblemError("not-found", f"Project {caller.project} has no live key {key_id!r}")
    return pages.renderer.page(
        request, "admin/revoke.html", key=found, is_own=found.id == caller.key_id
    )


@post(
    "/keys/{key_id:str}/revoke",
    status_code=200,
    include_in_schema=False,
    opt={"permission": "administer"},
)
async def revoke(
    request: Request[Any, Any, Any], pages: Pages, form: Form, key_id: PathKey
) -> Response[bytes]:
    """Revoke a key."""
    await end_key(pages.control, as_api(request, once_of(form)), key_id)
    return Response(b"", status_code=303, headers={"Location": "/keys?done=revoked"})


async def _page(
    request: Request[Any, Any, Any],
    pages: PagesPlane,
    fields: dict[str, str],
    *,
    made: KeyView | None = None,
    problem: ProblemError | None = None,
    chosen: Any = None,
) -> Response[bytes]:
    caller, now = principal_of(request), pages.control.clock()
    async with store.borrow(pages.control.pool) as connection:
        keys = await store.live_keys(connection, caller.project)
        makers = {key.created_by for key in keys if key.created_by is not None}
        notes = await read_notes(connection, caller.project, makers)
    wrong: dict[str, FieldProblem] = {}
    if problem is not None:
        wrong = {each.path.partition("[")[0]: each for each in problem.errors}
    return pages.renderer.page(
        request,
        "admin/keys.html",
        200 if problem is None else problem.status,
        keys=[(key, who(key.created_by or "", "", notes), key.has_expired(now)) for key in keys],
        own=caller.key_id,
        made=made,
        fields=fields,
        scope=() if chosen is None else chosen.get("scope", ()),
        problem="" if problem is None or wrong else problem.detail,
        wrong=wrong,
        roles=[(role, WHAT[role]) for role in ROLES],
        permissions=sorted(PERMISSIONS["admin"]),
        once=pages.control.random_bytes(_KEY_BYTES).hex(),
        done=request.query_params.get("done", ""),
    )


ROUTES: Final[list[HTTPRouteHandler]] = [show_keys, create, ask_to_revoke, revoke]
