"""The door to the events of live pages."""

from typing import Annotated, Any, Final

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from dashboard import sessions
from dashboard.plane import Pages
from dashboard.rendering import VISITOR
from dashboard.security import token_of
from dashboard.sessions import Visitor
from dashboard.streams import Topic
from experiments import lifecycle, store
from experiments.doors import principal_of

PATH: Final = "/live"
_LONGEST_SEEN: Final = 64


@get(PATH, include_in_schema=False, opt={"permission": "read"})
async def follow(
    request: Request[Any, Any, Any],
    pages: Pages,
    experiment: Annotated[str | None, QueryParameter()] = None,
    seen: Annotated[str | None, QueryParameter()] = None,
) -> ASGIApp:
    """The events of an experiment's page, or of the list."""
    project, known = principal_of(request).project, None
    if experiment is not None:
        async with store.borrow(pages.control.pool) as connection:
            known = (await lifecycle.find(connection, project, experiment)).id
    topic = Topic(project, known)
    session = sessions.digest_of(token_of(request) or "")
    visitor: Visitor = request.scope["state"][VISITOR]
    ends_at = visitor.ends_at
    last = request.headers.get("last-event-id") or seen
    told = last if last is not None and 0 < len(last) <= _LONGEST_SEEN else None

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await pages.live.serve(topic, session, told, receive, send, ends_at)

    return stream


ROUTES: Final[list[HTTPRouteHandler]] = [follow]
