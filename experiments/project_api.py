"""The doors of a project's own settings."""

from typing import Any, Final

from litestar import Request, Response, get, patch
from litestar.handlers import HTTPRouteHandler

from experiments import store
from experiments.doors import json_response, principal_of, read_as, read_json
from experiments.projects import Project, ProjectChange, get_project, require_sound
from experiments.proposals.gate import PROPOSES, do
from experiments.proposals.settings import SETTINGS
from experiments.writes import Control


@get("/v1/project", opt={"permission": "read", "gives": Project}, tags=["project"])
async def read_project(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """This project: its default unit type, how its units are stored, from which origins browsers
    may call, and which writes wait for the approval of a second editor."""
    async with store.borrow(control.pool) as connection:
        return json_response(await get_project(connection, principal_of(request).project))


@patch(
    "/v1/project",
    opt={"permission": "administer", "takes": ProjectChange, "gives": Project, **PROPOSES},
    tags=["project"],
)
async def change_project(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Change this project's settings. How its units are stored is fixed with its first event and
    its first start. To demand less approval than before waits for that of another admin."""
    sent = await read_json(request)
    body = read_as(ProjectChange, sent)
    require_sound(body)
    reason = request.headers.get("x-reason", "")[:1_000] or "changed"
    return await do(control, request, SETTINGS, None, sent, reason)


ROUTES: Final[list[HTTPRouteHandler]] = [read_project, change_project]
