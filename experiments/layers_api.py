"""The doors of layers."""

from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter

from experiments import store
from experiments.doors import json_response, principal_of, read_as, read_json
from experiments.layers import (
    LayerChange,
    LayerRecord,
    Owner,
    free_slots,
    get_layer,
    list_layers,
    owners,
    put_layer,
)
from experiments.model import SLOTS, Key, Text
from experiments.once import Answer
from experiments.pages import Cursor, Limit, Page, page, read_cursor
from experiments.writes import Control, write

LayerKey: TypeAlias = Annotated[
    str,
    PathParameter(
        pattern=r"^[a-z0-9_.-]{1,64}$(?!\n)", description="a key: of a-z, 0-9, _, . and -"
    ),
]


class LayerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/layers/{key}`: what it is for, and the type of its units; without one it
    is that of the project. The type stays as it is from then on."""

    description: Text = ""
    unit_type: Key | None = None


class LayerView(msgspec.Struct, frozen=True):
    """A layer: who has which of its slots `[first, end)`, and which are free. Experiments that run
    or pause have slots."""

    project: str
    key: str
    description: str
    unit_type: str
    salt: str
    owners: list[Owner]
    free: list[tuple[int, int]]
    created_at: datetime
    updated_at: datetime
    actor: str


def _view(layer: LayerRecord, taken: list[Owner]) -> LayerView:
    return LayerView(
        project=layer.project,
        key=layer.key,
        description=layer.description,
        unit_type=layer.unit_type,
        salt=layer.salt,
        owners=taken,
        free=free_slots(taken, SLOTS),
        created_at=layer.created_at,
        updated_at=layer.updated_at,
        actor=layer.actor,
    )


@get("/v1/layers", opt={"permission": "read", "gives": Page[LayerView]}, tags=["layers"])
async def list_of_layers(
    request: Request[Any, Any, Any], control: Control, limit: Limit = 100, cursor: Cursor = None
) -> Response[bytes]:
    """The project's layers, the newest first, with who has which of their slots."""
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection:
        layers = await list_layers(connection, project, limit + 1, read_cursor(cursor))
        taken = await owners(connection, project, *(layer.key for layer in layers))
    return json_response(
        page(layers, limit, lambda layer: _view(layer, taken[layer.key]), lambda layer: layer.id)
    )


@get("/v1/layers/{layer:str}", opt={"permission": "read", "gives": LayerView}, tags=["layers"])
async def read_layer(
    request: Request[Any, Any, Any], control: Control, layer: LayerKey
) -> Response[bytes]:
    """A layer, with who has which of its slots."""
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection:
        found = await get_layer(connection, project, layer)
        taken = await owners(connection, project, layer)
    return json_response(_view(found, taken[layer]))


@put(
    "/v1/layers/{layer:str}",
    opt={"permission": "write", "takes": LayerBody, "gives": LayerView},
    tags=["layers"],
)
async def set_layer(
    request: Request[Any, Any, Any], control: Control, layer: LayerKey
) -> Response[bytes]:
    """Make a layer, or say anew what it is for."""
    sent = await read_json(request)
    body = read_as(LayerBody, sent)
    caller = principal_of(request)
    change = LayerChange(body.description, body.unit_type, caller.actor, control.clock())

    async def act(connection: store.Connection) -> Answer:
        kept = await put_layer(connection, caller.project, layer, change)
        taken = await owners(connection, caller.project, layer)
        return Answer(200, {}, msgspec.json.encode(_view(kept, taken[layer])))

    return await write(control, request, sent, act, action="layer.set", target=f"layers/{layer}")


ROUTES: Final[list[HTTPRouteHandler]] = [list_of_layers, read_layer, set_layer]
