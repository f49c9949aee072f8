"""Who may see a page, and what a page may do in a browser."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.handlers.base import BaseRouteHandler
from litestar.params import SkipValidation

from dashboard import sessions
from dashboard.plane import PagesPlane
from dashboard.rendering import VISITOR
from dashboard.sessions import Visitor
from experiments import store
from experiments.doors import parse_json, read_body
from experiments.once import HEADER, MAX_KEY
from experiments.problems import ProblemError

Connection: TypeAlias = ASGIConnection[Any, Any, Any, Any]

COOKIE: Final = "turnout_session"
SECURE_COOKIE: Final = "__Host-turnout_session"
"""Behind https: a browser takes a cookie of such a name only from https, for this very host, so
that neither another subdomain nor who listens on a plain connection can plant one."""
CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "x-csrf-token"
MAX_FORM: Final = 1024 * 1024
_MOST_FIELDS: Final = 10_000
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

HEADERS: Final[Mapping[str, str]] = {
    # Nothing from elsewhere, nothing inline: what somebody smuggles into a page is inert.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SignInNeededError(Exception):
    """Nobody is signed in. `to` is where they were going."""

    def __init__(self, to: str) -> None:
        super().__init__("sign in")
        self.to = to


class Sent(msgspec.Struct, frozen=True):
    """What a form or a script of ours has sent: fields by their names (the last of each, all of
    them in `lists`), or JSON."""

    fields: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]
    json: Any = None


Form: TypeAlias = NamedDependency[SkipValidation[Sent]]
"""How a handler asks for what was sent: by the name `form`. That it came from a page of ours has
been checked then; every handler of a write has to ask for it."""


def page_guard(pages: PagesPlane) -> Callable[..., Awaitable[None]]:
    """A Litestar guard: a page is open to whoever is signed in with the permission that it names in
    `opt={"permission": ...}`, and one that names none to nobody."""

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        if connection.scope.get("method") == "OPTIONS":
            return  # OPTIONS tells which methods there are, and nothing else
        require_own_page(connection)
        visitor = await visitor_of(pages, connection)
        if visitor is None:
            raise SignInNeededError(_wanted(connection))
        # Before what the role may do is looked at: the page that refuses says who is signed in.
        connection.scope["state"][VISITOR] = visitor
        connection.scope["user"] = visitor.principal
        pages.gate.visit(visitor.principal, handler.opt["permission"])

    return guard


async def visitor_of(pages: PagesPlane, connection: Connection) -> Visitor | None:
    """Who is signed in, if anybody is."""
    token = token_of(connection)
    if token is None:
        return None
    control = pages.control
    async with store.borrow(control.pool) as database:
        return await sessions.find(database, token, control.clock(), control.random_bytes)


async def read_form(request: Request[Any, Any, Any]) -> Sent:
    """What a page has sent: a form, or JSON by a script.

    Raises:
        ProblemError: `forbidden` where it did not come from a page of this session; `malformed`.
    """
    body = await read_body(request, MAX_FORM)
    is_json = request.headers.get("content-type", "").startswith("application/json")
    # Who shows the token in a header is asked for it before anything is parsed.
    sent = Sent({}, {}) if is_json else fields_of(body)
    token = request.headers.get(CSRF_HEADER) or sent.fields.get(CSRF_FIELD, "")
    if not sessions.is_csrf(token, token_of(request) or ""):
        raise ProblemError(
            "forbidden", "This form is not of your session: load the page again, and send it anew"
        )
    return Sent({}, {}, parse_json(body)) if is_json else sent


def fields_of(body: bytes) -> Sent:
    """The fields of a form (`application/x-www-form-urlencoded`).

    Raises:
        ProblemError: `malformed`.
    """
    try:
        found = parse_qs(
            body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except ValueError as error:  # UnicodeDecodeError is one
        raise ProblemError("malformed", f"The form cannot be read: {error}") from error
    return Sent(
        {name: values[-1] for name, values in found.items()},
        {name: tuple(values) for name, values in found.items()},
    )


def require_own_page(connection: Connection) -> None:
    """Refuse a write that a browser sends for a page of somebody else, by what the browser itself
    says of it: the only protection of signing in (nobody has a token then), a second one of the
    rest. The rule is that of Go's `http.CrossOriginProtection`.

    Raises:
        ProblemError: `forbidden`.
    """
    if connection.scope.get("method") in _SAFE:
        return
    site = connection.headers.get("sec-fetch-site")
    if site is not None:
        is_own = site in {"same-origin", "none"}
    else:  # on a plain connection browsers do not say it
        origin = connection.headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == connection.headers.get("host")
    if not is_own:
        raise ProblemError(
            "forbidden",
            "This was sent by a page of another address. If it was not, a proxy in front of Turnout"
            " has to pass on the header `Host`",
        )


def as_api(request: Request[Any, Any, Any], headers: Mapping[str, str]) -> Request[Any, Any, Any]:
    """A form's request as a client of the API would have sent it: with headers in the place of the
    fields that a form has for them. It is the same request in the log and in the audit."""
    # What the framework remembers of the request's headers is left behind with its state.
    named = {k: v for k, v in request.scope["state"].items() if k == "request_id"}
    sent = [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()]
    return Request(cast(Any, {**request.scope, "headers": sent, "state": named}))


def once_of(form: Sent) -> dict[str, str]:
    """The header that makes sending a form twice the same as once, from its field."""
    once = form.fields.get("once", "")[:MAX_KEY]
    return {HEADER: once} if once else {}


def with_headers(response: Response[Any]) -> Response[Any]:
    """A page with the headers that all pages have."""
    if isinstance(response, Response):  # an event stream is none
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def token_of(connection: Connection) -> str | None:
    """The token of the session that a request comes with."""
    token = connection.cookies.get(SECURE_COOKIE)
    if token is None and not is_encrypted(connection):
        token = connection.cookies.get(COOKIE)
    return token


def cookie_of(connection: Connection, token: str, seconds: int) -> Cookie:
    """The cookie that holds a token for so long; none any more for 0 seconds."""
    secure = is_encrypted(connection)
    return Cookie(
        SECURE_COOKIE if secure else COOKIE,
        value=token,
        max_age=seconds,
        path="/",
        httponly=True,
        # Lax, not strict: a link in a chat leads to the page that it names.
        samesite="lax",
        secure=secure,
    )


def is_encrypted(connection: Connection) -> bool:
    """Whether the browser speaks https, to us or to a proxy in front of us.

    It only makes a cookie stricter, which does no harm to anybody but who asks for it. So the
    proxy's `X-Forwarded-Proto` and the browser's `Origin` are believed from anybody.
    """
    headers = connection.headers
    return (
        connection.scope.get("scheme") == "https"
        or "https" in headers.get("x-forwarded-proto", "").lower()
        or headers.get("origin", "").startswith("https://")
    )


def origin_of(connection: Connection) -> str:
    """Where browsers find these pages, as an address is told: https where they speak that, to us or
    to a proxy in front of us."""
    address = str(connection.base_url).rstrip("/")
    if is_encrypted(connection) and address.startswith("http://"):
        return f"https://{address.removeprefix('http://')}"
    return address


def own_address(to: str) -> str:
    """A path of ours, as it is; the first page for all else: elsewhere nobody is sent, whatever a
    link says."""
    is_ours = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return to if is_ours and to.isascii() else "/"


def sign_in_address(to: str) -> str:
    """Where one signs in, to go on to a page afterwards."""
    return f"/sign-in?to={quote(to, safe='')}" if to not in {"", "/"} else "/sign-in"


def _wanted(connection: Connection) -> str:
    """The page to come back to: the one that was asked for, or that a form stood on."""
    url = connection.url
    path, query = url.path, url.query
    if connection.scope.get("method") not in _SAFE or "hx-request" in connection.headers:
        before = urlsplit(connection.headers.get("referer", ""))
        path, query = (before.path, before.query) if before.netloc == url.netloc else ("/", "")
    return own_address(path + (f"?{query}" if query else ""))
