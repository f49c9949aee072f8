"""The doors of API keys, for admins."""

from datetime import datetime
from typing import Any, Final

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler

from experiments import store
from experiments.doors import PathKey, json_response, principal_of, read_as, read_json
from experiments.keys import (
    ApiKey,
    KeyRequest,
    Permission,
    Principal,
    Role,
    new_key,
    permissions_of,
    wrong_scope,
)
from experiments.model import parse_duration
from experiments.once import Answer
from experiments.pages import Page
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.writes import Control, ControlPlane, write


class KeyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key as it is shown; `key` is its text, given once, when it is made. `scope` and
    `rate_limit` are there where the key has them; `created_by` and `last_used_at`, true to the
    minute, where they are known."""

    id: str
    project: str
    role: Role
    note: str
    created_at: datetime
    expires_at: datetime | None
    scope: tuple[Permission, ...] | None = None
    rate_limit: int | None = None
    created_by: str | None = None
    last_used_at: datetime | None = None
    key: str = ""


def _key_view(key: ApiKey, text: str = "") -> KeyView:
    shown = {name: getattr(key, name) for name in KeyView.__struct_fields__ if name != "key"}
    return KeyView(**shown, key=text)


def _expiry(body: KeyRequest, now: datetime) -> datetime | None:
    try:
        return None if body.expires_in is None else now + parse_duration(body.expires_in)
    except OverflowError as error:
        detail = "must end before the year 10000; without it, a key never expires"
        raise invalid([FieldProblem("expires_in", "value", detail)]) from error


def _require_within(maker: Principal, body: KeyRequest) -> None:
    """Nobody gives what they do not have: a scope that its holder could shed would be none.

    Raises:
        ProblemError: `invalid` where role and scope do not fit; `forbidden`, naming what the maker
            itself may not do.
    """
    wrong = wrong_scope(body.role, body.scope)
    if wrong is not None:
        raise invalid([FieldProblem("scope", "value", wrong)])
    beyond = sorted(each for each in permissions_of(body.role, body.scope) if not maker.may(each))
    if beyond:
        raise ProblemError(
            "forbidden",
            f"Your key has a scope without {', '.join(beyond)}, so it can make no key that may:"
            " name a `scope` within your own",
        )


@post(
    "/v1/keys",
    opt={"permission": "administer", "takes": KeyRequest, "gives": KeyView},
    tags=["keys"],
)
async def create_key(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Make an API key for this project. Its text is shown this once."""
    return await make_key(control, request, await read_json(request))


async def make_key(
    control: ControlPlane, request: Request[Any, Any, Any], sent: Any
) -> Response[bytes]:
    """Make a key as a body asks for it: what the door and the page do. The answer has its text the
    first time, and never again."""
    body = read_as(KeyRequest, sent)
    maker = principal_of(request)
    _require_within(maker, body)
    now = control.clock()
    text, key = new_key(
        maker.project,
        body.role,
        body.note,
        now,
        control.random_bytes,
        _expiry(body, now),
        scope=body.scope,
        rate_limit=body.rate_limit,
        created_by=maker.actor,
    )
    made = False

    async def act(connection: store.Connection) -> Answer:
        nonlocal made
        await store.insert_key(connection, key)
        made = True
        return Answer(201, {}, msgspec.json.encode(_key_view(key)))

    # What is kept for a retry lacks the text: a secret is stored nowhere.
    response = await write(
        control, request, sent, act, action="key.create", target=f"keys/{key.id}"
    )
    return json_response(_key_view(key, text), 201) if made else response


@get("/v1/keys", opt={"permission": "administer", "gives": Page[KeyView]}, tags=["keys"])
async def list_keys(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """The live keys of this project, without their secrets."""
    async with store.borrow(control.pool) as connection:
        keys = await store.live_keys(connection, principal_of(request).project)
    return json_response(Page([_key_view(k) for k in keys], None))


@delete("/v1/keys/{key_id:str}", opt={"permission": "administer"}, tags=["keys"])
async def revoke_key(request: Request[Any, Any, Any], control: Control, key_id: PathKey) -> None:
    """Revoke a key: no router takes it any more."""
    await end_key(control, request, key_id)


async def end_key(control: ControlPlane, request: Request[Any, Any, Any], key_id: str) -> None:
    """Revoke a key of the caller's project: what the door and the page do.

    Raises:
        ProblemError: `not-found`.
    """
    project = principal_of(request).project

    async def act(connection: store.Connection) -> Answer:
        if not await store.revoke_key(connection, project, key_id, control.clock()):
            raise ProblemError("not-found", f"Project {project} has no live key {key_id!r}")
        return Answer(204, {}, b"")

    await write(control, request, None, act, action="key.revoke", target=f"keys/{key_id}")


ROUTES: Final[list[HTTPRouteHandler]] = [create_key, list_keys, revoke_key]
