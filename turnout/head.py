"""HEAD at every door and page: what GET answers, without its body (RFC 9110, 9.3.2).

The doors say what they do on GET alone. Here a HEAD is asked of them as a GET, and ends with the
head of its answer: what streams a long body then finds that its peer has gone.
"""

from collections.abc import Collection
from typing import cast

from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from litestar.types.asgi_types import HTTPDisconnectEvent, HTTPReceiveMessage


class Heads:
    """ASGI middleware: answers HEAD with the status and the headers of GET."""

    def __init__(self, app: ASGIApp, streams: Collection[str] = ()) -> None:
        """`streams` are the paths of event streams, which have no end and nothing to look at: there
        HEAD is not allowed."""
        self._app = app
        self._streams = frozenset(streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if (
            scope["type"] == ScopeType.HTTP
            and scope["method"] == HttpMethod.HEAD
            and scope["path"] not in self._streams
        ):
            await self._handle(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _handle(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        asked = cast("HTTPScope", {**scope, "method": "GET"})
        is_answered = False

        async def receive_until_answered() -> HTTPReceiveMessage:
            if is_answered:
                return HTTPDisconnectEvent(type="http.disconnect")
            return cast("HTTPReceiveMessage", await receive())

        async def send_head(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self._app(
                cast("Scope", asked), cast("Receive", receive_until_answered), send_head
            )
        finally:
            # What the app says of a request in its scope: who asked, and at which door.
            cast("dict[str, object]", scope).update({**asked, "method": scope["method"]})
