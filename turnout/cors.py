"""Calls by pages of other origins (the Fetch standard's CORS protocol).

A browser that evaluates has a key in the page, which everybody can read there: so it is one of role
`client`, and only the doors that take the permission to evaluate answer to pages of elsewhere. A
project names the origins whose pages may read its answers. No cookie goes with such a call
(`Access-Control-Allow-Credentials` is never said), so the origin protects nothing that the key does
not: it keeps a key that was copied from one page from being used by others without effort.

A browser asks before it calls (the preflight), and does so without the key: then the answer is yes
if any project names the origin. The call itself has the key, and its answer, be it an error, may be
read where the project of the key names the origin. Of a key that is not known nobody can say whose
it is: that it is wrong may be read from any origin that could call at all.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final, cast
from urllib.parse import parse_qs

from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from experiments.doors import key_of
from experiments.keys import key_id_of
from experiments.projects import ANY_ORIGIN
from router.snapshot import Snapshot
from router.streams import PATH as EVENTS

REMEMBER_SECONDS: Final = 600
"""How long a browser goes without asking again; the least that is the most in one of them."""

_METHODS: Final = b"GET, POST"
_HEADERS: Final = (
    b"Authorization, Content-Type, If-None-Match, Last-Event-ID, X-API-Key, X-Request-Id,"
    b" traceparent, tracestate"
)
_EXPOSED: Final = b"ETag, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
_VARY: Final = (b"vary", b"Origin")


class Cors:
    """ASGI middleware: lets pages of the named origins read what the doors answer."""

    def __init__(
        self,
        app: ASGIApp,
        doors: Iterable[HTTPRouteHandler],
        snapshot: Callable[[], Snapshot],
    ) -> None:
        """Of `doors` those answer to pages of elsewhere that take the permission to evaluate."""
        paths = [
            path
            for door in doors
            if door.opt.get("permission") == "evaluate"
            for path in sorted(door.paths)
        ]
        self._app = app
        self._snapshot = snapshot
        self._exact = {path: path for path in paths if "{" not in path}
        self._within = {path.partition("{")[0]: path for path in paths if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":  # type: ignore[comparison-overlap]  # plain text on the wire
            # What no page asks for is answered as the fast lane does, to the byte.
            asks = any(name == b"origin" for name, _ in scope["headers"])
            door = self._door_at(scope["path"]) if asks else None
            if door is not None:
                await self._handle(cast("HTTPScope", scope), door, receive, send)
                return
        await self._app(scope, receive, send)

    def _door_at(self, path: str) -> str | None:
        found = self._exact.get(path)
        if found is not None:
            return found
        return next((door for start, door in self._within.items() if path.startswith(start)), None)

    async def _handle(self, scope: HTTPScope, door: str, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        snapshot = self._snapshot()
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            allowed = allow_origin(origin, snapshot.origins)
            if allowed is not None:
                scope["path_template"] = door
                await _answer_preflight(allowed, send)
                return
            added = [_VARY]
        else:
            named = _origins_for(scope, headers, snapshot)
            added = [_VARY, *_readable(allow_origin(origin, named))]

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_on)


def allow_origin(origin: str, named: Collection[str]) -> bytes | None:
    """What `Access-Control-Allow-Origin` says to a page of this origin; None for nothing."""
    if not origin:
        return None
    if ANY_ORIGIN in named:
        return ANY_ORIGIN.encode()
    return origin.encode("latin-1") if origin in named else None


def _origins_for(
    scope: HTTPScope, headers: dict[bytes, bytes], snapshot: Snapshot
) -> Collection[str]:
    """The origins that the project of the key in a request names; of all projects, where it has no
    key that is known. The key's id is enough: only the doors ask for its secret."""
    api_key = headers.get(b"x-api-key")
    text = key_of(
        headers.get(b"authorization", b"").decode("latin-1"),
        None if api_key is None else api_key.decode("latin-1"),
    )
    key_id = None if text is None else key_id_of(text)
    if key_id is None and scope["path"] == EVENTS:
        [ticket] = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[:1]
        key_id = ticket.partition(".")[0]
    key = None if key_id is None else snapshot.find_key(key_id)
    return snapshot.origins if key is None else snapshot.projects[key.project].origins


def _readable(allowed: bytes | None) -> list[tuple[bytes, bytes]]:
    if allowed is None:
        return []
    return [
        (b"access-control-allow-origin", allowed),
        (b"access-control-expose-headers", _EXPOSED),
    ]


async def _answer_preflight(allowed: bytes, send: Send) -> None:
    headers = [
        (b"access-control-allow-origin", allowed),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _HEADERS),
        (b"access-control-max-age", str(REMEMBER_SECONDS).encode()),
        (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
