"""A project's own settings in Postgres: above all, how its units are stored."""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from experiments import overrides, store
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.store import Connection
from experiments.units import KEY_BYTES, Storage, UnitKey

Approval: TypeAlias = Literal["start", "change", "allocation"]
"""What a project can ask a second pair of eyes for: to start an experiment, to change one that
runs, to move its traffic by hand."""
ANY_ORIGIN: Final = "*"
MOST_ORIGINS: Final = 100
_LONGEST_ORIGIN: Final = 300
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_COLUMNS: Final = "key, default_unit_type, units, created_at, version, origins, approvals"
_GET: Final = f"select {_COLUMNS} from project where key = $1"  # noqa: S608 - made of a constant
_LOCK: Final = _GET.replace(_COLUMNS, f"{_COLUMNS}, has_events") + " for no key update"
_STARTED: Final = "select exists (select from experiment where project = $1 and run > 0)"
_SET_UNITS: Final = "update project set units = $2, version = version + 1 where key = $1"
_SET_SETTINGS: Final = """
    update project set origins = $2, approvals = $3, version = version + 1 where key = $1
"""
_APPROVALS: Final = "select approvals from project where key = $1"
_LIST: Final = f"""
    select {_COLUMNS},
           (select count(*) from api_key k where k.project = project.key and revoked_at is null
            and (expires_at is null or expires_at > $1)) as live_keys
    from project order by key
"""  # noqa: S608 - made of a constant
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
    origins: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()


class ProjectChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes of a project; what is left out stays as it is."""

    units: Storage | UnsetType = UNSET
    origins: Annotated[list[str], Meta(max_length=MOST_ORIGINS)] | UnsetType = UNSET
    approvals: list[Approval] | UnsetType = UNSET

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return self == ProjectChange()


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


async def approvals_of(connection: Connection, project: str) -> frozenset[str]:
    """What a project asks a second pair of eyes for: some of `start`, `change`, `allocation`."""
    return frozenset(await connection.fetchval(_APPROVALS, project) or ())


async def change_project(
    connection: Connection,
    project: str,
    change: ProjectChange,
    random_bytes: Callable[[int], bytes],
) -> Project:
    """Change a project's settings, in the caller's transaction: all of them, or none.

    Args:
        random_bytes: a cryptographic source such as `secrets.token_bytes`.

    Raises:
        ProblemError: `invalid` with every wrong field; as `set_units`.
    """
    require_sound(change)
    if change.units is not UNSET:
        await set_units(connection, project, change.units, random_bytes)
    row = await connection.fetchrow(_LOCK, project)
    if row is None:
        raise _unknown(project)
    before = _project(row)
    origins = before.origins if change.origins is UNSET else _in_order(change.origins)
    approvals = before.approvals if change.approvals is UNSET else _in_order(change.approvals)
    if (origins, approvals) == (before.origins, before.approvals):
        return before
    await connection.execute(_SET_SETTINGS, project, origins, approvals)
    return await get_project(connection, project)


def require_sound(change: ProjectChange) -> None:
    """Refuse a change that changes nothing, or names what can be no origin.

    Raises:
        ProblemError: `invalid` with every wrong field.
    """
    if change.is_empty:
        detail = "name at least one of units, origins and approvals"
        raise invalid([FieldProblem("$", "missing", detail)])
    wrong = [
        FieldProblem(f"origins[{place}]", "value", why)
        for place, origin in enumerate([] if change.origins is UNSET else change.origins)
        if (why := wrong_origin(origin)) is not None
    ]
    if wrong:
        raise invalid(wrong)


def wrong_origin(text: str) -> str | None:
    """What is wrong with an origin, in words; None if nothing is. It has to read as browsers send
    it (RFC 6454, 6.2), for it is compared to the byte."""
    if text == ANY_ORIGIN:
        return None
    right = "must be * or an origin as browsers send it, such as https://shop.example.com"
    if len(text) > _LONGEST_ORIGIN or not text.isascii() or not text.isprintable():
        return right
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return right
    host = parts.hostname
    if parts.scheme not in _DEFAULT_PORTS or not host or set(host) & set(" *%\\<>\"'`{}|^,;"):
        return right
    bracketed = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{bracketed}"
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        shown += f":{port}"
    return None if text == shown else f"{right}: without a path, in lower case, {shown} perhaps"


async def list_projects(connection: Connection, now: datetime) -> list[tuple[Project, int]]:
    """All projects, each with the number of its keys that have neither ended nor been revoked."""
    rows = await connection.fetch(_LIST, now)
    return [(_project(row), row["live_keys"]) for row in rows]


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
    return msgspec.convert({name: row[name] for name in Project.__struct_fields__}, Project)


def _in_order(words: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))  # each once, in the order in which they were named


def _unknown(project: str) -> ProblemError:
    return ProblemError("not-found", f"There is no project {project!r}")
