"""The doors of overrides. A unit's id comes in the body, for paths are logged everywhere."""

from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from msgspec import Meta

from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, principal_of, read_as, read_json
from experiments.model import AttributeName, Experiment, Key, Reason
from experiments.once import Answer
from experiments.overrides import Wish, add_override, end_override, list_overrides
from experiments.pages import Cursor, Limit, Page, page, read_cursor
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.projects import get_project, unit_key
from experiments.proposals.gate import is_demanded
from experiments.proposals.model import Demand
from experiments.records import Override
from experiments.units import UnitId, UnitKey, unit_problem, without_unit
from experiments.writes import Control, write

Comparable: TypeAlias = Annotated[
    Annotated[str, Meta(max_length=256)] | bool | int | float,
    Meta(description="text of at most 256 characters, a number, true or false"),
]
"""What an attribute may be compared with."""

LARGEST_ID: Final = 10**18
_DEMANDS: Final[tuple[Demand, ...]] = ("change", "allocation")
_NOT_WHILE_DEMANDED: Final = (
    "This project demands approval of changes or of moves of traffic, and an override by attribute"
    " can move all of it: give a variant to single units, or change the targeting"
)


class OverrideBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST …/overrides`: who gets which variant, and why. Either a `unit`, or an
    `attribute` with a `value`, which it must have to the letter: 1 is not 1.0, nor "1"."""

    variant: Key
    reason: Reason
    unit: UnitId | None = None
    attribute: AttributeName | None = None
    value: Comparable | None = None


class OverrideView(msgspec.Struct, frozen=True):
    """An override as it is shown; `unit` is as the project stores it. `ended_at` is null while it
    is in force."""

    id: int
    experiment: str
    variant: str
    unit: str | None
    attribute: str | None
    value: Comparable | None
    created_at: datetime
    actor: str
    reason: str
    ended_at: datetime | None
    ended_by: str | None


def _view(experiment: str, override: Override) -> OverrideView:
    fields = {name: getattr(override, name) for name in Override.__struct_fields__}
    return OverrideView(experiment=experiment, **fields)


@get(
    "/v1/experiments/{key:str}/overrides",
    opt={"permission": "read", "gives": Page[OverrideView]},
    tags=["overrides"],
)
async def list_of_overrides(
    request: Request[Any, Any, Any],
    control: Control,
    key: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
    ended: Annotated[bool, QueryParameter(description="those that are ended, too")] = False,
) -> Response[bytes]:
    """The overrides that are in force, the newest first; with `ended=true` all there ever were."""
    async with store.borrow(control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        found = await list_overrides(
            connection, record.id, limit + 1, read_cursor(cursor), ended=ended
        )
    return json_response(page(found, limit, lambda o: _view(key, o), lambda o: o.id))


@post(
    "/v1/experiments/{key:str}/overrides",
    opt={"permission": "write", "takes": OverrideBody, "gives": OverrideView},
    tags=["overrides"],
)
async def create_override(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Give a unit, or all with a value of an attribute, a variant, without an exposure. What the
    same one had before is ended."""
    body = read_as(OverrideBody, await read_json(request))
    _check_who(body)
    caller = principal_of(request)
    async with store.borrow(control.pool) as connection:
        secret = await unit_key(connection, caller.project, control.random_bytes)
    made: OverrideView | None = None
    told: dict[str, Any] = {}

    async def act(connection: store.Connection) -> Answer:
        nonlocal made, told
        record = await lifecycle.find_to_change(connection, caller.project, key)
        _check_against(body, record.definition)
        if body.attribute is not None:
            for demand in _DEMANDS:
                if await is_demanded(connection, caller.project, demand):
                    raise ProblemError("conflict", _NOT_WHILE_DEMANDED)
        project = await get_project(connection, caller.project)  # it stays so: the lock is held
        unit = body.unit
        if unit is not None and project.units == "hashed":
            unit = secret.hashed(record.definition.unit.type, unit)
        wish = Wish(
            variant=body.variant,
            unit=unit,
            attribute=body.attribute,
            value=body.value,
            actor=caller.actor,
            reason=body.reason,
            at=control.clock(),
        )
        made = _view(key, await add_override(connection, record, wish))
        told = _told(body, made, secret, record.definition.unit.type)
        kept = msgspec.structs.replace(made, unit=None)
        return Answer(201, {}, msgspec.json.encode(kept))

    # What is kept for a retry lacks the unit: nobody would find it there to forget it.
    hidden = None if body.unit is None else secret.tombstone("", body.unit).hex()
    sent = msgspec.to_builtins(msgspec.structs.replace(body, unit=hidden))
    target = f"experiments/{key}"
    response = await write(
        control,
        request,
        sent,
        act,
        action="override.create",
        target=target,
        told=lambda: told,
    )
    return response if made is None else json_response(made, 201)


@delete(
    "/v1/experiments/{key:str}/overrides/{override:str}",
    opt={"permission": "write"},
    tags=["overrides"],
)
async def delete_override(
    request: Request[Any, Any, Any], control: Control, key: PathKey, override: PathKey
) -> None:
    """End an override: its unit gets what all others get."""
    caller = principal_of(request)
    known = override.isascii() and override.isdigit() and int(override) < LARGEST_ID

    async def act(connection: store.Connection) -> Answer:
        record = await lifecycle.find_to_change(connection, caller.project, key)
        if not known or not await end_override(
            connection, record, int(override), control.clock(), caller.actor
        ):
            raise ProblemError(
                "not-found", f"Experiment {key} has no override {override!r} in force"
            )
        return Answer(204, {}, b"")

    target = f"experiments/{key}/overrides/{override}"
    await write(control, request, None, act, action="override.end", target=target)


def _told(body: OverrideBody, made: OverrideView, key: UnitKey, unit_type: str) -> dict[str, Any]:
    """What the audit keeps of an override. It is never forgotten there, so a unit, and a value that
    may name a person, are keyed hashes; a unit's is the one that its erasure has, too."""
    told: dict[str, Any] = {"override": made.id, "variant": made.variant, "reason": made.reason}
    if body.unit is not None and made.unit is not None:
        told["unit_type"] = unit_type
        told["unit_hash"] = key.tombstone(unit_type, made.unit).hex()
        told["reason"] = without_unit(made.reason, body.unit)
    else:
        told["attribute"] = body.attribute
        value = msgspec.json.encode(body.value).decode()
        told["value_hash"] = key.tombstone("$value", value).hex()
    return told


def _check_who(body: OverrideBody) -> None:
    """Make sure that a body names one unit, or one value.

    Raises:
        ProblemError: `invalid` with every wrong field.
    """
    problems: list[FieldProblem] = []
    if body.unit is None and body.attribute is None:
        detail = "give either `unit`, or `attribute` and `value`"
        problems.append(FieldProblem("unit", "missing", detail))
    if body.unit is not None:
        detail = "give either `unit`, or `attribute` and `value`, not both"
        given = {"attribute": body.attribute, "value": body.value}
        problems += [
            FieldProblem(name, "conflict", detail)
            for name, field in given.items()
            if field is not None
        ]
        wrong = unit_problem(body.unit)
        if wrong is not None:
            problems.append(FieldProblem("unit", "value", wrong))
    elif body.attribute is not None and body.value is None:
        detail = "must be text, a number, true or false: what the attribute is to be"
        problems.append(FieldProblem("value", "missing", detail))
    if problems:
        raise invalid(problems)


def _check_against(body: OverrideBody, definition: Experiment) -> None:
    """Make sure that an override fits an experiment.

    Raises:
        ProblemError: `invalid` with every wrong field.
    """
    problems: list[FieldProblem] = []
    known = definition.weights
    if body.variant not in known:
        problems.append(FieldProblem("variant", "reference", f"there are {', '.join(known)}"))
    if body.attribute in {definition.unit.attribute, "targetingKey"}:
        detail = "holds the unit: give it as `unit`, to be stored, and forgotten, as units are"
        problems.append(FieldProblem("attribute", "conflict", detail))
    if problems:
        raise invalid(problems)


ROUTES: Final[list[HTTPRouteHandler]] = [list_of_overrides, create_override, delete_override]
