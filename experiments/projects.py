"""A project's own settings in Postgres: above all, how its units are stored."""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from experiments import overrides, store
from experiments.problems import ProblemError
from experiments.store import Connection
from experiments.units import KEY_BYTES, Storage, UnitKey

_COLUMNS: Final = "key, default_unit_type, units, created_at, version"
_GET: Final = f"select {_COLUMNS} from project where key = $1"  # noqa: S608 - made of a constant
_LOCK: Final = _GET.replace(_COLUMNS, f"{_COLUMNS}, has_events") + " for no key update"
_STARTED: Final = "select exists (select from experiment where project = $1 and run > 0)"
_SET_UNITS: Final = "update project set units = $2, version = version + 1 where key = $1"
_MAKE_KEY: Final = "update project set unit_key = $2 where key = $1 and unit_key is null"
_KEY: Final = "select unit_key from project where key = $1"
# In one order, so that two who fix the same projects wait for each other and no more.
_FIX: Final = """
    update project set has_events = true
    where key in (
        select key from project where key = any($1) and not has_events order by key
        for no key update
    )
"""
_KEYS_OF_HASHED: Final = """
    select key, unit_key from project where key = any($1) and units = 'hashed'
"""


class Project(msgspec.Struct, frozen=True):
    """A project as it is shown."""

    key: str
    default_unit_type: str
    units: Storage
    created_at: datetime
    version: int


async def get_project(connection: Connection, project: str) -> Project:
    """A project.

    Raises:
        ProblemError: `not-found` where there is none of this key.
    """
    row = await connection.fetchrow(_GET, project)
    if row is None:
        raise _unknown(project)
    return _project(row)


async def set_units(
    connection: Connection, project: str, units: Storage, random_bytes: Callable[[int], bytes]
) -> Project:
    """Say how a project's units are stored, in the caller's transaction. Overrides may be there
    before all else: their units are hashed with it.

    Args:
        random_bytes: a cryptographic source such as `secrets.token_bytes`.

    Raises:
        ProblemError: `conflict` where it is to change and is fixed already: some units would be
            stored one way and some the other, or where overrides keep it from being turned back;
            `not-found` where there is no such project.
    """
    await store.enter_alone(connection, project)
    row = await connection.fetchrow(_LOCK, project)
    if row is None:
        raise _unknown(project)
    if row["units"] == units:
        return _project(row)
    if row["has_events"] or await connection.fetchval(_STARTED, project):
        happened = "has recorded events" if row["has_events"] else "has started an experiment"
        raise ProblemError(
            "conflict",
            f"`units` is fixed once an experiment was started or an event recorded; project"
            f" {project} {happened}, and stays {row['units']}",
        )
    key = await unit_key(connection, project, random_bytes)
    if units == "hashed":
        await overrides.hash_units(connection, project, key)
    else:
        await overrides.leave_hashes(connection, project)
    await connection.execute(_SET_UNITS, project, units)
    return await get_project(connection, project)


async def unit_key(
    connection: Connection, project: str, random_bytes: Callable[[int], bytes]
) -> UnitKey:
    """The secret key of a project that there is, made the first time that somebody needs it."""
    secret = await connection.fetchval(_KEY, project)
    if secret is None:
        await connection.execute(_MAKE_KEY, project, random_bytes(KEY_BYTES))
        secret = await connection.fetchval(_KEY, project)  # another may have been faster
    return UnitKey(secret)


async def fix_units(
    connection: Connection, projects: Collection[str], seconds: float
) -> dict[str, UnitKey | None]:
    """Fix how these projects' units are stored, for events are about to go in.

    Not in a transaction: nobody should wait for what the caller does next.

    Args:
        seconds: what one query may take.

    Returns:
        for each the key that its units are hashed with; None where they are stored as they are.
    """
    await connection.execute(_FIX, projects, timeout=seconds)
    rows = await connection.fetch(_KEYS_OF_HASHED, projects, timeout=seconds)
    return dict.fromkeys(projects) | {row["key"]: UnitKey(row["unit_key"]) for row in rows}


def _project(row: asyncpg.Record) -> Project:
    return Project(**{name: row[name] for name in Project.__struct_fields__})


def _unknown(project: str) -> ProblemError:
    return ProblemError("not-found", f"There is no project {project!r}")
