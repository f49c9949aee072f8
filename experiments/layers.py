"""Layers: experiments that share one slot space, so that a unit is in at most one of them.

A layer has a salt of its own, which no experiment can have, and units of one type. Experiments that
run or pause own the slots that their definitions name, and no two own the same. Nothing else is
stored of it: who has ended, and who has not begun, owns nothing.
"""

from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from experiments.model import Experiment, Layer, State
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.records import ExperimentRecord
from experiments.store import Connection

_COLUMNS: Final = "id, project, key, description, unit_type, salt, created_at, updated_at, actor"
_GET: Final = f"select {_COLUMNS} from layer where project = $1 and key = $2"  # noqa: S608 - made of a constant
_LOCK: Final = _GET + " for no key update"
_LIST: Final = f"""
    select {_COLUMNS} from layer
    where project = $1 and ($2::bigint is null or id < $2) order by id desc limit $3
"""  # noqa: S608 - made of a constant
_DEFAULT_UNIT_TYPE: Final = "select default_unit_type from project where key = $1"
_INSERT: Final = f"""
    insert into layer (project, key, description, unit_type, salt, created_at, updated_at, actor)
    values ($1, $2, $3, $4, $5, $6, $6, $7)
    on conflict (project, key) do nothing returning {_COLUMNS}
"""  # noqa: S608 - made of a constant
_UPDATE: Final = f"""
    update layer set description = $2, updated_at = $3, actor = $4 where id = $1
    returning {_COLUMNS}
"""  # noqa: S608 - made of a constant
_OWNERS: Final = """
    select key, state, definition -> 'layer' as layer from experiment
    where project = $1 and state in ('running', 'paused')
      and definition -> 'layer' ->> 'key' = any($2)
    order by id
"""


class LayerRecord(msgspec.Struct, frozen=True):
    """A layer as it stands. `unit_type` and `salt` are for good."""

    id: int
    project: str
    key: str
    description: str
    unit_type: str
    salt: str
    created_at: datetime
    updated_at: datetime
    actor: str


class Owner(msgspec.Struct, frozen=True):
    """An experiment that has the slots `[first, end)` of a layer."""

    experiment: str
    state: State
    slots: tuple[int, int]


class LayerChange(msgspec.Struct, frozen=True):
    """What somebody says of a layer, who, and when; None leaves the unit type as it is, or to the
    project."""

    description: str
    unit_type: str | None
    actor: str
    at: datetime


async def get_layer(connection: Connection, project: str, key: str) -> LayerRecord:
    """A layer.

    Raises:
        ProblemError: `not-found`.
    """
    row = await connection.fetchrow(_GET, project, key)
    if row is None:
        raise ProblemError("not-found", f"Project {project} has no layer {key!r}")
    return _layer(row)


async def list_layers(
    connection: Connection, project: str, limit: int, after: int | None
) -> list[LayerRecord]:
    """Up to `limit` layers, the newest first, from behind the id `after`."""
    return [_layer(row) for row in await connection.fetch(_LIST, project, after, limit)]


async def put_layer(
    connection: Connection, project: str, key: str, change: LayerChange
) -> LayerRecord:
    """Make a layer, or change what is said of it.

    Raises:
        ProblemError: `invalid` where its unit type would change.
    """
    unit_type = change.unit_type or await connection.fetchval(_DEFAULT_UNIT_TYPE, project)
    made = await connection.fetchrow(
        _INSERT,
        project,
        key,
        change.description,
        unit_type,
        f"#layer.{key}",
        change.at,
        change.actor,
    )
    if made is not None:
        return _layer(made)
    [row] = await connection.fetch(_LOCK, project, key)
    layer = _layer(row)
    if change.unit_type not in {None, layer.unit_type}:
        detail = f"a layer keeps its unit type for good: {layer.unit_type}"
        raise invalid([FieldProblem("unit_type", "immutable", detail)])
    changed = await connection.fetch(_UPDATE, layer.id, change.description, change.at, change.actor)
    return _layer(changed[0])


async def owners(connection: Connection, project: str, *layers: str) -> dict[str, list[Owner]]:
    """Who has which slots of layers, by layer, in their order."""
    found: dict[str, list[Owner]] = {key: [] for key in layers}
    for row in await connection.fetch(_OWNERS, project, layers):
        layer = msgspec.json.decode(row["layer"], type=Layer)
        found[layer.key].append(Owner(row["key"], row["state"], layer.slots))
    return {key: sorted(group, key=lambda owner: owner.slots) for key, group in found.items()}


async def problems_of(
    connection: Connection, project: str, definition: Experiment
) -> list[FieldProblem]:
    """What is wrong with the layer that a definition names, if it names one."""
    if definition.layer is None:
        return []
    row = await connection.fetchrow(_GET, project, definition.layer.key)
    if row is None:
        detail = f"there is no such layer; `PUT /v1/layers/{definition.layer.key}` makes it"
        return [FieldProblem("layer.key", "reference", detail)]
    if row["unit_type"] != definition.unit.type:
        detail = (
            f"this layer is of units of type {row['unit_type']}, the experiment of units of type "
            f"{definition.unit.type}"
        )
        return [FieldProblem("layer.key", "conflict", detail)]
    return []


async def claim(connection: Connection, record: ExperimentRecord) -> None:
    """Make sure, to the end of the transaction, that nobody else has the slots that an experiment
    is about to have.

    Raises:
        ProblemError: `conflict`, which names whoever has some of them, and its slots.
    """
    wanted = record.definition.layer
    if wanted is None:
        return
    await connection.execute(_LOCK, record.project, wanted.key)
    first, end = wanted.slots
    holders = [
        owner
        for owner in (await owners(connection, record.project, wanted.key))[wanted.key]
        if owner.experiment != record.key and owner.slots[0] < end and first < owner.slots[1]
    ]
    if holders:
        named = ", ".join(
            f"{owner.experiment} ({owner.state}) has [{owner.slots[0]}, {owner.slots[1]})"
            for owner in holders
        )
        detail = f"[{first}, {end}) of layer {wanted.key} is taken: {named}"
        raise ProblemError("conflict", detail, [FieldProblem("layer.slots", "conflict", detail)])


def free_slots(taken: list[Owner], slots: int) -> list[tuple[int, int]]:
    """The slots of a layer that nobody has, as runs `[first, end)`; `taken` is in order."""
    free: list[tuple[int, int]] = []
    at = 0
    for owner in taken:
        if at < owner.slots[0]:
            free.append((at, owner.slots[0]))
        at = owner.slots[1]
    return [*free, (at, slots)] if at < slots else free


def _layer(row: asyncpg.Record) -> LayerRecord:
    return LayerRecord(**dict(row))
