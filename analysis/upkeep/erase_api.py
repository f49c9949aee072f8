"""The door that forgets a unit. The id comes in the body, for paths are logged everywhere."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation
from msgspec import Meta

from analysis.upkeep.erase import Erased, NamesUnit, Order, erase
from experiments import paths, store
from experiments.doors import principal_of, read_as, read_json
from experiments.firsts import forget_firsts
from experiments.model import Key, Reason
from experiments.once import Answer
from experiments.problems import FieldProblem, invalid
from experiments.projects import Project, get_project, unit_key
from experiments.units import MAX_UNITS, UnitId, UnitKey, names_unit, unit_problem
from experiments.writes import Control, write

ReadsLetters: TypeAlias = NamedDependency[SkipValidation[NamesUnit]]


class EraseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/units/erase`: a unit of the project's default type, or units by type.

    The reason is kept, and must not name the unit.
    """

    reason: Reason
    unit: UnitId | None = None
    units: Annotated[dict[Key, UnitId], Meta(min_length=1, max_length=MAX_UNITS)] | None = None


@post(
    "/v1/units/erase",
    status_code=200,
    opt={"permission": "administer", "takes": EraseRequest, "gives": Erased},
    tags=["privacy"],
)
async def erase_units(
    request: Request[Any, Any, Any], control: Control, names_unit: ReadsLetters
) -> Response[bytes]:
    """Forget a unit: its events, its enrolments, and its part in every report."""
    body = read_as(EraseRequest, await read_json(request))
    caller = principal_of(request)
    async with store.borrow(control.pool) as connection:
        project = await get_project(connection, caller.project)
        key = await unit_key(connection, caller.project, control.random_bytes)
    units = _stored(_units(body, project.default_unit_type), project, key)
    order = Order(caller.project, units, caller.actor, body.reason)

    async def act(connection: store.Connection) -> Answer:
        # Before all else, so that nothing is erased where Redis is away.
        await forget_firsts(control.redis, connection, caller.project, units)
        erased = await erase(connection, order, key, control.clock, names_unit)
        return Answer(200, {}, msgspec.json.encode(erased))

    # A hash of what was sent is kept for a retry; it must tell no more than a tombstone does.
    tombstones = {kind: key.tombstone(kind, unit).hex() for kind, unit in units}
    sent = {"units": tombstones, "reason": body.reason}
    answer = await write(control, request, sent, act, action="unit.erase", target="units")
    # Once more, for a unit that came meanwhile: its exposure met the tombstone. A retry of what
    # failed here comes by here again.
    async with store.borrow(control.pool) as connection:
        await forget_firsts(control.redis, connection, caller.project, units)
    return answer


def _units(body: EraseRequest, default_unit_type: str) -> Mapping[str, str]:
    """The units to erase, by type, as they were sent.

    Raises:
        ProblemError: `invalid` where they are missing or no ids, or the reason names one.
    """
    if body.unit is not None and body.units is None:
        named, sent = {"unit": body.unit}, {default_unit_type: body.unit}
    elif body.units is not None and body.unit is None:
        named = {paths.field("units", kind): unit for kind, unit in body.units.items()}
        sent = dict(body.units)
    else:
        kind = "missing" if body.unit is None else "conflict"
        raise invalid([FieldProblem("unit", kind, "give either `unit` or `units`")])
    problems = [
        FieldProblem(path, "value", detail)
        for path, unit in named.items()
        if (detail := unit_problem(unit)) is not None
    ]
    if any(names_unit(body.reason, unit) for unit in named.values()):
        detail = "must not name the unit, for the reason is kept: name the request instead"
        problems.append(FieldProblem("reason", "value", detail))
    if problems:
        raise invalid(problems)
    return sent


def _stored(units: Mapping[str, str], project: Project, key: UnitKey) -> list[tuple[str, str]]:
    """The units as the project stores them: pairs of unit type and unit."""
    if project.units == "plain":
        return sorted(units.items())
    return sorted((kind, key.hashed(kind, unit)) for kind, unit in units.items())


ROUTES: Final[list[HTTPRouteHandler]] = [erase_units]
