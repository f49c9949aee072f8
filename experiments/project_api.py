"""The doors of a project's own settings."""

from typing import Any, Final

import msgspec
from litestar import Request, Response, get, patch
from litestar.handlers import HTTPRouteHandler

from experiments import store
from experiments.doors import json_response, principal_of, read_as, read_json
from experiments.once import Answer
from experiments.projects import Project, get_project, set_units
from experiments.units import Storage
from experiments.writes import Control, write


class ProjectChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /v1/project`: how units are stored."""

    units: Storage


@get("/v1/project", opt={"permission": "read", "gives": Project}, tags=["project"])
async def read_project(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """This project: its default unit type, and how its units are stored."""
    async with store.borrow(control.pool) as connection:
        return json_response(await get_project(connection, principal_of(request).project))


@patch(
    "/v1/project",
    opt={"permission": "administer", "takes": ProjectChange, "gives": Project},
    tags=["project"],
)
async def change_project(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Say how this project's units are stored, before its first event and its first start."""
    sent = await read_json(request)
    body = read_as(ProjectChange, sent)
    project = principal_of(request).project

    async def act(connection: store.Connection) -> Answer:
        changed = await set_units(connection, project, body.units, control.random_bytes)
        return Answer(200, {}, msgspec.json.encode(changed))

    return await write(control, request, sent, act)


ROUTES: Final[list[HTTPRouteHandler]] = [read_project, change_project]
