"""Overrides: who always gets a variant, for testing. They are dated rows: one that is ended stays,
so that what a tester met can be explained later."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from experiments import store
from experiments.problems import ProblemError
from experiments.records import ExperimentRecord, Override
from experiments.store import Connection
from experiments.units import UnitKey

MOST: Final = 1_000
"""Current overrides of one experiment: they are for testers, every router knows them all."""

_COLUMNS: Final = (
    "id, variant, unit, attribute, value, created_at, actor, reason, ended_at, ended_by"
)
_LIST: Final = f"""
    select {_COLUMNS} from override
    where experiment = $1 and ($2::bigint is null or id < $2) and (ended_at is null or $4)
    order by id desc limit $3
"""  # noqa: S608 - made of a constant
_COUNT: Final = "select count(*) from override where experiment = $1 and ended_at is null"
_REPLACE: Final = """
    update override set ended_at = $5, ended_by = $6
    where experiment = $1 and ended_at is null
      and (unit = $2 or (attribute = $3 and value = $4))
"""
_INSERT: Final = f"""
    insert into override
        (experiment, variant, unit_type, unit, attribute, value, created_at, actor, reason)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    returning {_COLUMNS}
"""  # noqa: S608 - made of a constant
_END: Final = """
    update override set ended_at = $3, ended_by = $4
    where experiment = $1 and id = $2 and ended_at is null
"""
_END_OUTDATED: Final = """
    update override set ended_at = $4, ended_by = $5
    where experiment = $1 and ended_at is null
      and (variant <> all($2) or unit is not null and unit_type <> $3)
"""
_LOCK_NAMING: Final = """
    select id from experiment
    where project = $1 and id in (
        select o.experiment
        from override o join unnest($2::text[], $3::text[]) as gone (unit_type, unit)
        using (unit_type, unit)
    )
    order by id for no key update
"""
_FORGET: Final = """
    delete from override o
    using unnest($2::text[], $3::text[]) as gone (unit_type, unit)
    where o.experiment = any($1) and o.unit_type = gone.unit_type and o.unit = gone.unit
"""

_OF_UNITS: Final = """
    select o.id, o.unit_type, o.unit, o.ended_at is null as current
    from override o join experiment x on x.id = o.experiment
    where x.project = $1 and o.unit is not null
"""
_RENAME: Final = """
    update override o set unit = named.unit
    from unnest($1::bigint[], $2::text[]) as named (id, unit) where o.id = named.id
"""
_DELETE: Final = "delete from override where id = any($1)"


class Wish(msgspec.Struct, frozen=True):
    """An override that somebody wants: a unit as the project stores units, or a value of an
    attribute; who, when, and why."""

    variant: str
    unit: str | None
    attribute: str | None
    value: Any
    actor: str
    reason: str
    at: datetime


async def list_overrides(
    connection: Connection, experiment: int, limit: int, after: int | None, *, ended: bool
) -> list[Override]:
    """Up to `limit` overrides, the newest first, from behind the id `after`: the current ones, and
    those that are ended where `ended` says so."""
    rows = await connection.fetch(_LIST, experiment, after, limit, ended)
    return [store.read_override(row) for row in rows]


async def add_override(connection: Connection, record: ExperimentRecord, wish: Wish) -> Override:
    """Give a unit, or a value of an attribute, a variant from now on. What it had before is ended.
    The caller has locked the experiment.

    Raises:
        ProblemError: `conflict` where the experiment is archived, or has too many.
    """
    if record.state == "archived":
        raise ProblemError("conflict", "An experiment that is archived answers nobody")
    value = None if wish.attribute is None else msgspec.json.encode(wish.value).decode()
    who = (wish.unit, wish.attribute, value)
    await connection.execute(_REPLACE, record.id, *who, wish.at, wish.actor)
    if await connection.fetchval(_COUNT, record.id) >= MOST:
        raise ProblemError("conflict", f"An experiment has at most {MOST} overrides; end some")
    [row] = await connection.fetch(
        _INSERT,
        record.id,
        wish.variant,
        record.definition.unit.type,
        *who,
        wish.at,
        wish.actor,
        wish.reason,
    )
    await store.mark_changed(connection, record.project, [record.id])
    return store.read_override(row)


async def end_override(
    connection: Connection, record: ExperimentRecord, number: int, at: datetime, actor: str
) -> bool:
    """End an override; whether there was a current one of this id. The caller has locked the
    experiment."""
    status = await connection.execute(_END, record.id, number, at, actor)
    if status != "UPDATE 1":
        return False
    await store.mark_changed(connection, record.project, [record.id])
    return True


async def end_outdated(
    connection: Connection, record: ExperimentRecord, at: datetime, actor: str
) -> None:
    """End what a changed definition has no place for: overrides to a variant that it has no more,
    and of units of another type. Its caller makes routers read the experiment anew."""
    definition = record.definition
    variants = list(definition.weights)
    await connection.execute(_END_OUTDATED, record.id, variants, definition.unit.type, at, actor)


async def forget_units(
    connection: Connection, project: str, units: Sequence[tuple[str, str]]
) -> list[int]:
    """Delete the overrides of units, ended ones too; the experiments that had them, which stay
    locked. Their caller marks them as changed once it holds no lock that others wait for.

    Args:
        units: pairs of unit type and unit, as the project stores them.
    """
    types, names = [kind for kind, _ in units], [unit for _, unit in units]
    await store.enter(connection, project)
    rows = await connection.fetch(_LOCK_NAMING, project, types, names)
    experiments = [row["id"] for row in rows]
    if experiments:
        await connection.execute(_FORGET, experiments, types, names)
    return experiments


async def hash_units(connection: Connection, project: str, key: UnitKey) -> None:
    """Keep the units of a project's overrides as hashes from now on. The caller has the project
    alone, so that no other is given meanwhile."""
    rows = await connection.fetch(_OF_UNITS, project)
    hashes = [key.hashed(row["unit_type"], row["unit"]) for row in rows]
    await connection.execute(_RENAME, [row["id"] for row in rows], hashes)


async def leave_hashes(connection: Connection, project: str) -> None:
    """Prepare a project whose units were hashed for units as they are. The caller has the project
    alone, and nothing of it was ever started: so nobody met what is ended, and it can go.

    Raises:
        ProblemError: `conflict` where some are in force: whose they are cannot be read from a hash.
    """
    rows = await connection.fetch(_OF_UNITS, project)
    if any(row["current"] for row in rows):
        raise ProblemError(
            "conflict",
            "There are overrides of units, which are stored as hashes and cannot be turned back:"
            " end them first",
        )
    await connection.execute(_DELETE, [row["id"] for row in rows])
