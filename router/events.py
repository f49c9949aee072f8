"""The door to the event streams of OFREP 0.3."""

from typing import Annotated, Any, Final

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from experiments.doors import authenticate, key_text, require
from experiments.keys import ApiKey
from experiments.problems import ProblemError
from router.api import Data, handle_ofrep_problem
from router.plane import DataPlane
from router.streams import PATH, check_ticket

_MOST_DIGITS: Final = 18


@get(
    PATH,
    opt={"permission": "evaluate"},
    exception_handlers={ProblemError: handle_ofrep_problem},
    responses={
        200: ResponseSpec(str, description="A stream of events", media_type="text/event-stream")
    },
    security=[{}, {"bearer": []}, {"apiKey": []}],
    tags=["assignment"],
)
async def follow_changes(
    request: Request[Any, Any, Any],
    plane: Data,
    token: Annotated[
        str | None, QueryParameter(description="a ticket, as a bulk evaluation gives it")
    ] = None,
    since: Annotated[
        str | None, QueryParameter(description="the version that the client was answered from")
    ] = None,
    last_event_id: Annotated[
        str | None,
        QueryParameter(
            name="lastEventId",
            description="the id of the last event, from clients that cannot send `Last-Event-ID`",
        ),
    ] = None,
) -> ASGIApp:
    """Server-sent events: one whenever the project has changed, so that flags are evaluated again.

    The address, with its ticket, comes from a bulk evaluation. A key in a header opens it as well.
    """
    key = _key(request, plane, token)
    resumed = request.headers.get("last-event-id") or last_event_id
    seen = _version(since if resumed is None else resumed)

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await plane.streams.serve(key, seen, receive, send)

    return stream


def _key(request: Request[Any, Any, Any], plane: DataPlane, ticket: str | None) -> ApiKey:
    """The key behind a ticket; without a ticket, the one in the request's headers."""
    now, keys = plane.clock(), plane.refresher
    if ticket is None:
        caller = authenticate(key_text(request.headers), keys, now)
        require(caller, "evaluate")
        key = keys.find_key(caller.key_id)
    else:
        key = check_ticket(ticket, keys, now)
    if key is None:
        raise ProblemError("unauthenticated", "The ticket has ended: evaluate all flags again")
    return key


def _version(text: str | None) -> int | None:
    """The version that a client names; None where that is none of ours."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        return None
    return int(text)


ROUTES: Final[list[HTTPRouteHandler]] = [follow_changes]
"""They ask for a ticket or a key themselves."""
