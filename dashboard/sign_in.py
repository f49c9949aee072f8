"""Signing in with an API key, and out."""

import logging
from typing import Annotated, Any, Final

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from dashboard import sessions
from dashboard.plane import Pages
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
from experiments.doors import read_body
from experiments.keys import key_id_of
from experiments.problems import ProblemError

_WRONG: Final = {
    "unauthenticated": "This is no valid key: it is wrong, was revoked or has expired.",
    "forbidden": "This key may not see pages: that takes the role analyst, editor or admin.",
}
_LONGEST_ID: Final = 12
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
        async with store.borrow(control.pool) as connection:
            token = await sessions.begin(
                connection, principal.key_id, control.clock(), control.random_bytes
            )
        if token is None:  # revoked, and the gate has not heard of it yet
            raise ProblemError("unauthenticated", "")
    except ProblemError as error:
        # The id is no secret, and finds the key; of what was sent nothing else is written down.
        key_id = (key_id_of(text) or "")[:_LONGEST_ID]
        logger.warning("sign-in refused", extra={"problem": error.type, "key_id": key_id})
        wrong = _WRONG.get(error.type, error.detail)
        return pages.renderer.page(request, "sign_in.html", error.status, to=to, wrong=wrong)
    response = _go(to)
    response.set_cookie(cookie_of(request, token, int(sessions.LIFE.total_seconds())))
    return response


@post("/sign-out", status_code=200, include_in_schema=False, opt={"permission": "read"})
async def sign_out(request: Request[Any, Any, Any], pages: Pages, form: Form) -> Response[bytes]:
    """End the session."""
    async with store.borrow(pages.control.pool) as connection:
        await sessions.end(connection, token_of(request) or "")
    response = _go("/sign-in")
    response.set_cookie(cookie_of(request, "", 0))
    return response


def _go(to: str) -> Response[bytes]:
    return Response(b"", status_code=303, headers={"Location": to})


OPEN: Final[list[HTTPRouteHandler]] = [show_sign_in, sign_in]
"""Pages for those who are not signed in."""
GUARDED: Final[list[HTTPRouteHandler]] = [sign_out]
