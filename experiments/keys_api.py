"""The doors of API keys, for admins."""

from datetime import datetime
from typing import Any, Final

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler

from experiments import store
from experiments.announce import announce
from experiments.doors import PathKey, json_response, principal_of, read_as, read_json
from experiments.keys import ApiKey, Role, new_key
from experiments.model import Duration, Text, parse_duration
from experiments.once import Answer
from experiments.pages import Page
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.writes import Control, write


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/keys`."""

    role: Role
    note: Text = ""
    expires_in: Duration | None = None


class KeyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key as it is shown; `key` is its text, given once, when it is made."""

    id: str
    project: str
    role: Role
    note: str
    created_at: datetime
    expires_at: datetime | None
    key: str = ""


def _key_view(key: ApiKey, text: str = "") -> KeyView:
    return KeyView(key.id, key.project, key.role, key.note, key.created_at, key.expires_at, text)


@post(
    "/v1/keys",
    opt={"permission": "administer", "takes": KeyRequest, "gives": KeyView},
    tags=["keys"],
)
async def create_key(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Make an API key for this project. Its text is shown this once."""
    sent = await read_json(request)
    body = read_as(KeyRequest, sent)
    now = control.clock()
    try:
        expires_at = None if body.expires_in is None else now + parse_duration(body.expires_in)
    except OverflowError as error:
        detail = "must end before the year 10000; without it, a key never expires"
        raise invalid([FieldProblem("expires_in", "value", detail)]) from error
    project = principal_of(request).project
    text, key = new_key(project, body.role, body.note, now, control.random_bytes, expires_at)
    made = False

    async def act(connection: store.Connection) -> Answer:
        nonlocal made
        await store.insert_key(connection, key)
        made = True
        return Answer(201, {}, msgspec.json.encode(_key_view(key)))

    # What is kept for a retry lacks the text: a secret is stored nowhere.
    response = await write(control, request, sent, act)
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
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection, connection.transaction():
        if not await store.revoke_key(connection, project, key_id, control.clock()):
            raise ProblemError("not-found", f"Project {project} has no live key {key_id!r}")
    await announce(control.redis, project)


ROUTES: Final[list[HTTPRouteHandler]] = [create_key, list_keys, revoke_key]
