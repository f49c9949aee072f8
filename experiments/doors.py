"""What all HTTP doors share: keys, permissions, bodies, and errors as problem details."""

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, NoReturn, Protocol, TypeAlias, TypeVar

import msgspec
from litestar import MediaType, Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, InternalServerException, ValidationException
from litestar.handlers.base import BaseRouteHandler
from litestar.params import PathParameter

from experiments.decoding import decode
from experiments.key_uses import Happened, Noted, Stranger, Uses
from experiments.keys import (
    PERMISSIONS,
    ApiKey,
    Permission,
    Principal,
    check_key,
    digest_of,
    holder_of,
    is_secret,
    key_id_of,
    secret_of,
)
from experiments.limits import Bucket, RateLimiter
from experiments.problems import FieldProblem, ProblemBody, ProblemError, invalid

T = TypeVar("T")
Clock = Callable[[], datetime]
"""Gives the time, UTC and aware."""

PathKey: TypeAlias = Annotated[
    str,
    PathParameter(
        pattern=r"^([a-z0-9_.-]{1,64}|\$holdout)$(?!\n)",
        description="a key: of a-z, 0-9, _, . and -",
    ),
]
"""A key or an id in a path. What has another form names nothing: not found."""

PROBLEM_JSON = "application/problem+json"
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises where a text is no JSON, or is nested too deep to be read."""
MAX_BODY = 8 * 1024 * 1024
_MOST_REMEMBERED = 10_000
_PARAMETER_NAMES = {"in_state": "state", "form": "format"}  # others have these names
_PROBLEM_OF_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class Reply(msgspec.Struct, frozen=True):
    """An answer before it is on a wire, by whichever way it gets there."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}


class KeyRing(Protocol):
    """Where the doors look keys up: the router's snapshot."""

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None."""
        ...


def names_tag(if_none_match: str, tag: str) -> bool:
    """Whether an `If-None-Match` names a tag: a list of tags, weak or strong, or `*`.

    The comparison is the weak one (RFC 9110, 13.1.2). Tags without quotes are taken as well, since
    OFREP's own examples have none.
    """
    names = (name.strip().removeprefix("W/").strip('"') for name in if_none_match.split(","))
    bare = tag.strip('"')
    return any(name in {bare, "*"} for name in names)


def key_text(headers: Any) -> str | None:
    """The API key that a request carries in `Authorization: Bearer` or `X-API-Key`."""
    return key_of(headers.get("authorization", ""), headers.get("x-api-key"))


def key_of(authorization: str, api_key: str | None) -> str | None:
    """The API key in the values of these two headers."""
    scheme, _, credentials = authorization.partition(" ")
    if credentials and scheme.lower() == "bearer":
        return credentials.strip()
    return api_key


def authenticate(text: str | None, keys: KeyRing, now: datetime) -> Principal:
    """Who holds this key.

    Raises:
        ProblemError: `unauthenticated`, with the same words whatever is wrong with the key.
    """
    if text is not None:
        key_id = key_id_of(text)
        kept = keys.find_key(key_id) if key_id is not None else None
        principal = check_key(text, kept, now) if kept is not None else None
        if principal is not None:
            return principal
    raise unauthenticated()


def unauthenticated() -> ProblemError:
    """The answer to who has no valid key: the same words whatever is wrong with it."""
    return ProblemError(
        "unauthenticated",
        "Send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        headers={"WWW-Authenticate": "Bearer"},
    )


def require(principal: Principal, permission: Permission) -> None:
    """Let a caller through, or not.

    Raises:
        ProblemError: `forbidden`, naming the permission.
    """
    if not principal.may(permission):
        raise forbidden(principal, permission)


def forbidden(principal: Principal, permission: Permission) -> ProblemError:
    """The answer to who lacks a permission, which says by what."""
    if permission in PERMISSIONS[principal.role]:
        return ProblemError("forbidden", f"The scope of this key leaves out to {permission}")
    return ProblemError(
        "forbidden", f"A key with the role {principal.role} has no permission to {permission}"
    )


class _Admitted:
    """A key that was shown with its secret, and what follows from it. `used` is set with each use,
    until somebody asks."""

    __slots__ = ("bucket", "expires_at", "key", "permissions", "principal", "used")

    def __init__(self, key: ApiKey, bucket: Bucket | None) -> None:
        self.key = key
        self.principal = holder_of(key)
        self.permissions = key.permissions
        self.expires_at = key.expires_at
        self.bucket = bucket
        self.used = False


class Gate:
    """Lets callers in: whoever has a valid key with the permission, and has not come too often.

    What is worth knowing about the use of keys it counts in `uses`.
    """

    def __init__(
        self,
        keys: KeyRing,
        clock: Clock,
        limiter: RateLimiter | None = None,
        uses: Uses | None = None,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._limiter = limiter
        self.uses = Uses() if uses is None else uses
        self._admitted: dict[str | None, _Admitted] = {}

    def admit(self, text: str | None, permission: Permission) -> Principal:
        """Who calls with this key.

        Raises:
            ProblemError: `unauthenticated`, `forbidden` or `rate-limited`.
        """
        admitted = self._admitted.get(text)
        # Who came with this key before, if it is still the same: to hash it again would find
        # nothing else.
        if (
            admitted is None
            or self._keys.find_key(admitted.key.id) is not admitted.key
            or (admitted.expires_at is not None and admitted.expires_at <= self._clock())
        ):
            admitted = self._let_in(text)
        admitted.used = True
        if permission not in admitted.permissions:
            self._forbid(admitted.principal, permission)
        if admitted.bucket is not None:
            self._take(admitted.bucket, admitted.key.id)
        return admitted.principal

    def visit(self, principal: Principal, permission: Permission) -> None:
        """Let through who is signed in on the pages; it counts as a call with the key.

        Raises:
            ProblemError: `forbidden` or `rate-limited`.
        """
        self.uses.used.add(principal.key_id)
        if not principal.may(permission):
            self._forbid(principal, permission)
        key = self._keys.find_key(principal.key_id)
        if self._limiter is not None and key is not None:
            bucket = self._limiter.bucket_of(key)
            if bucket is not None:
                self._take(bucket, key.id)

    def used(self) -> list[str]:
        """The keys that were let in since this was asked last."""
        used = [each for each in self._admitted.values() if each.used]
        for each in used:
            each.used = False
        return [each.key.id for each in used]

    def _let_in(self, text: str | None) -> _Admitted:
        now = self._clock()
        key_id = None if text is None else key_id_of(text)
        kept = None if key_id is None else self._keys.find_key(key_id)
        if text is None or key_id is None:
            self.uses.refuse("no_key")
        elif kept is None:
            # It is hashed as if it were known, so that the time tells no difference.
            stranger = Stranger(key_id, digest_of(secret_of(text)))
            self.uses.refuse("unknown_key")
            self.uses.meet(stranger, Noted(1, now, now))
        elif not is_secret(digest_of(secret_of(text)), kept.secret_hash):
            self.uses.refuse("wrong_secret")
            self.uses.note(Happened(key_id, "wrong_secret"), Noted(1, now, now))
        elif kept.has_expired(now):
            self.uses.refuse("expired")
            self.uses.note(Happened(key_id, "used_after_expiry"), Noted(1, now, now))
        else:
            return self._remember(text, kept)
        raise unauthenticated()

    def _remember(self, text: str, key: ApiKey) -> _Admitted:
        if len(self._admitted) >= _MOST_REMEMBERED:
            self.uses.used.update(self.used())
            self._admitted.clear()
        bucket = None if self._limiter is None else self._limiter.bucket_of(key)
        admitted = self._admitted[text] = _Admitted(key, bucket)
        return admitted

    def _forbid(self, principal: Principal, permission: Permission) -> NoReturn:
        now = self._clock()
        self.uses.refuse("permission")
        happened = Happened(principal.key_id, "refused", permission)
        self.uses.note(happened, Noted(1, now, now))
        raise forbidden(principal, permission)

    def _take(self, bucket: Bucket, key_id: str) -> None:
        assert self._limiter is not None, "no bucket without it"  # noqa: S101 - an invariant
        try:
            self._limiter.take(bucket)
        except ProblemError:
            now = self._clock()
            self.uses.refuse("rate_limited")
            self.uses.note(Happened(key_id, "rate_limited"), Noted(1, now, now))
            raise


def permission_guard(gate: Gate) -> Callable[..., Awaitable[None]]:
    """A Litestar guard: a door is open only to the permission that it names in
    `opt={"permission": ...}`, and one that names none to nobody."""

    # Asynchronous, though it waits for nothing: the framework runs others in a thread.
    async def guard(
        connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
    ) -> None:
        if connection.scope.get("method") == "OPTIONS":
            return  # OPTIONS tells which methods there are, and nothing else
        connection.scope["user"] = gate.admit(
            key_text(connection.headers), handler.opt["permission"]
        )

    return guard


def principal_of(request: Request[Any, Any, Any]) -> Principal:
    """Who called, as the guard found out."""
    principal: Principal = request.scope["user"]
    return principal


async def read_body(request: Request[Any, Any, Any], limit: int = MAX_BODY) -> bytes:
    """The body of a request.

    Raises:
        ProblemError: `unsupported-media-type` where it is compressed; `too-large`, as soon as more
            than `limit` bytes have come; `malformed` where its sender goes away in the middle,
            which is no defect of ours.
    """
    if request.headers.get("content-encoding", "identity").lower() not in {"identity", ""}:
        raise ProblemError(
            "unsupported-media-type",
            "Send the body as it is: no Content-Encoding is taken but identity",
            headers={"Accept-Encoding": "identity"},
        )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks = bytearray()
    try:
        async for chunk in request.stream():
            chunks += chunk
            if len(chunks) > limit:
                raise _too_large(limit)
    except InternalServerException as error:  # all that the framework says of a disconnect
        raise ProblemError("malformed", "The body ended early: its sender has gone") from error
    return bytes(chunks)


def _too_large(limit: int) -> ProblemError:
    return ProblemError("too-large", f"A body may have at most {limit} bytes")


async def read_json(request: Request[Any, Any, Any], limit: int = 1024 * 1024) -> Any:
    """The JSON value in the body of a request.

    Raises:
        ProblemError: `malformed` where it is none, or an object in it has a name twice, of which
            one would be ignored.
    """
    body = await read_body(request, limit)
    value = parse_json(body)
    try:
        # Numbers stay text: this looks at names only.
        json.loads(body, object_pairs_hook=_refuse_twice, parse_int=str, parse_float=str)
    except RecursionError as error:
        raise malformed(error) from error
    return value


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ProblemError("malformed", f"An object names {name[:80]!r} twice")
        seen.add(name)


def parse_json(body: bytes) -> Any:
    """The JSON value in a body.

    Raises:
        ProblemError: `malformed` where it is none.
    """
    try:
        return msgspec.json.decode(body)
    except NOT_JSON as error:
        raise malformed(error) from error


def malformed(error: Exception) -> ProblemError:
    """The answer to a body that cannot be read."""
    return ProblemError("malformed", f"The body is not JSON: {error}")


def read_as(kind: type[T], data: Any) -> T:
    """A body as this Struct.

    Raises:
        ProblemError: `invalid` with every wrong field.
    """
    decoded = decode(kind, data)
    if decoded.problems:
        raise invalid(decoded.problems)
    return decoded.value


def problem_reply(error: ProblemError, request_id: str = "") -> Reply:
    """The answer that says what went wrong."""
    body = ProblemBody(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        errors=error.errors,
        request_id=request_id,
    )
    return Reply(error.status, msgspec.json.encode(body), PROBLEM_JSON, error.headers)


def respond(reply: Reply) -> Response[bytes]:
    """An answer by way of the framework."""
    return Response(
        reply.body,
        status_code=reply.status,
        media_type=reply.media_type,
        headers=dict(reply.headers),
    )


def problem_response(error: ProblemError, request_id: str = "") -> Response[bytes]:
    """The answer that says what went wrong, by way of the framework."""
    return respond(problem_reply(error, request_id))


def handle_problem(request: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    """Litestar exception handler for our own errors."""
    return problem_response(error, request.scope["state"].get("request_id", ""))


def handle_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Litestar exception handler for the framework's errors: the same form as ours."""
    return handle_problem(request, problem_of(error))


def problem_of(error: HTTPException) -> ProblemError:
    """An error of the framework as one of ours."""
    if isinstance(error, ValidationException):
        return _wrong_parameters(error)
    kind = _PROBLEM_OF_STATUS.get(error.status_code)
    if kind is None:
        kind = "malformed" if error.status_code < 500 else "internal"
    headers = {
        name: ", ".join(sorted(value.split(", ")))  # the framework has them in a set
        for name, value in (error.headers or {}).items()
        if name.lower() == "allow"
    }
    return ProblemError(kind, error.detail, headers=headers)


def _wrong_parameters(error: ValidationException) -> ProblemError:
    wrong: list[dict[str, str]] = error.extra if isinstance(error.extra, list) else []
    if any(parameter.get("source") == "path" for parameter in wrong):
        return ProblemError("not-found", "The path names nothing: keys are of a-z, 0-9, _, . and -")
    if not wrong:
        return ProblemError("malformed", error.detail)
    names = [parameter.get("key", "$") for parameter in wrong]
    return invalid(
        [
            FieldProblem(_PARAMETER_NAMES.get(name, name), "value", parameter["message"])
            for name, parameter in zip(names, wrong, strict=True)
        ]
    )


def json_response(
    value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response[bytes]:
    """An answer in JSON."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        media_type=MediaType.JSON,
        headers=headers or {},
    )
