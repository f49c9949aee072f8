"""Signing in with an API key, and out."""

import logging
from datetime import timedelta
from typing import Annotated, Any, Final

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from dashboard import sessions
from dashboard.plane import Pages, PagesPlane
from dashboard.security import (
    MAX_FORM,
    Form,
    cookie_of,
    fields_of,
    own_address,
    require_own_page,
    token_of,
    visitor_of,
)
from experiments import store
from experiments.audit.log import Entry, note
from experiments.doors import principal_of, read_body
from experiments.keys import Principal, key_id_of
from experiments.problems import ProblemError

_WRONG: Final = {
    "unauthenticated": "This is no valid key: it is wrong, was revoked or has expired.",
    "forbidden": "This key may not see pages: that takes the role analyst, editor or admin.",
}
_LONGEST_ID: Final = 12
_APART: Final = timedelta(minutes=1)
_TO_BE_NOTED: Final = """
    select project from api_key k where id = $1 and not exists (
        select from audit a
        where a.project = k.project and a.target = 'keys/' || k.id
          and a.action = 'sign_in.refused' and a.at > $2
    )
"""
logger = logging.getLogger(__name__)


@get("/sign-in", include_in_schema=False)
async def show_sign_in(
    request: Request[Any, Any, Any], pages: Pages, to: Annotated[str, QueryParameter()] = "/"
) -> Response[bytes]:
    """The page that asks for a key."""
    if await visitor_of(pages, request) is not None:
        return _go(own_address(to))
    return pages.renderer.page(request, "sign_in.html", to=own_address(to), wrong="")


@post("/sign-in", status_code=200, include_in_schema=False)
async def sign_in(request: Request[Any, Any, Any], pages: Pages) -> Response[bytes]:
    """Begin a session, if the key is good."""
    require_own_page(request)
    sent = fields_of(await read_body(request, MAX_FORM)).fields
    to, text = own_address(sent.get("to", "/")), sent.get("key", "").strip()
    control = pages.control
    try:
        principal = pages.gate.admit(text, "read")
        async with (
            store.borrow(control.pool) as connection,
            connection.transaction(),
        ):
            token = await sessions.begin(
                connection, principal.key_id, control.clock(), control.random_bytes
            )
            if token is not None:
                await note(connection, _entry(pages, request, principal, "sign_in"))
        if token is None:  # revoked, and the gate has not heard of it yet
            raise ProblemError("unauthenticated", "")
    except ProblemError as error:
        # The id is no secret, and finds the key; of what was sent nothing else is written down.
        key_id = (key_id_of(text) or "")[:_LONGEST_ID]
        logger.warning("sign-in refused", extra={"problem": error.type, "key_id": key_id})
        await _note_refusal(pages, request, key_id, error.type)
        wrong = _WRONG.get(error.type, error.detail)
        return pages.renderer.page(request, "sign_in.html", error.status, to=to, wrong=wrong)
    response = _go(to)
    response.set_cookie(cookie_of(request, token, int(sessions.LIFE.total_seconds())))
    return response


@post("/sign-out", status_code=200, include_in_schema=False, opt={"permission": "read"})
async def sign_out(request: Request[Any, Any, Any], pages: Pages, form: Form) -> Response[bytes]:
    """End the session."""
    async with store.borrow(pages.control.pool) as connection, connection.transaction():
        await sessions.end(connection, token_of(request) or "")
        await note(connection, _entry(pages, request, principal_of(request), "sign_out"))
    response = _go("/sign-in")
    response.set_cookie(cookie_of(request, "", 0))
    return response


def _entry(
    pages: PagesPlane, request: Request[Any, Any, Any], who: Principal, action: str
) -> Entry:
    return Entry(
        project=who.project,
        kind="sign_in",
        action=action,
        target=f"keys/{who.key_id}",
        actor=who.actor,
        at=pages.control.clock(),
        request_id=_request_id(request),
    )


async def _note_refusal(
    pages: PagesPlane, request: Request[Any, Any, Any], key_id: str, problem: str
) -> None:
    """Note that a key which is known was refused. What is kept for ever must not grow as fast as a
    stranger can ask, who needs no more than a key's id for it: one of a minute is noted."""
    now = pages.control.clock()
    try:
        async with store.borrow(pages.control.pool) as connection, connection.transaction():
            project = await connection.fetchval(_TO_BE_NOTED, key_id, now - _APART)
            if project is not None:
                refused = Entry(
                    project=project,
                    kind="sign_in",
                    action="sign_in.refused",
                    target=f"keys/{key_id}",
                    actor="system",
                    at=now,
                    request_id=_request_id(request),
                    detail={"problem": problem},
                )
                await note(connection, refused)
    except (*store.PostgresError, OSError) as error:  # then it is in the log alone
        logger.warning("a refused sign-in was not noted", extra={"error": repr(error)})


def _request_id(request: Request[Any, Any, Any]) -> str:
    identity: str = request.scope["state"].get("request_id", "")
    return identity


def _go(to: str) -> Response[bytes]:
    return Response(b"", status_code=303, headers={"Location": to})


OPEN: Final[list[HTTPRouteHandler]] = [show_sign_in, sign_in]
"""Pages for those who are not signed in."""
GUARDED: Final[list[HTTPRouteHandler]] = [sign_out]
