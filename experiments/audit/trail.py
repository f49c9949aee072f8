"""Reading the audit of a project: by what was done, by whom and when; whole, for an export; and
where it ends. Each function takes a connection, or a pool where it must not hold one for long."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from experiments import store
from experiments.audit.chain import Link, Mark
from experiments.audit.log import Kind
from experiments.problems import ProblemError
from experiments.store import Connection

PAGE: Final = 500
LINK_COLUMNS: Final = """
    a.project, a.number, a.kind, a.action, a.target, a.actor, a.request_id,
    a.detail::text as detail, encode(a.previous, 'hex') as previous, encode(a.hash, 'hex') as hash,
    to_char(a.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at
"""
_ENTRIES: Final = """
    select number, at, kind, action, target, actor, request_id, detail::text as detail,
           encode(previous, 'hex') as previous, encode(hash, 'hex') as hash
    from audit where project = $1
"""
# One statement for each set of filters: each finds its rows in an index of theirs.
_FILTERS: Final = {
    "kind": "and kind = ${}",
    "actor": "and actor = ${}",
    "action": "and action = ${}",
    "target": "and target = ${}",
    "since": "and at >= ${}",
    "until": "and at < ${}",
    "before": "and number < ${}",
}
_HEAD: Final = "select number, encode(hash, 'hex') as hash from audit_head where project = $1"
_ON: Final = f"""
    select {LINK_COLUMNS} from audit a
    where a.project = $1 and a.number > $2 and a.number <= $3 order by a.number limit $4
"""  # noqa: S608 - constants


class AuditEntry(msgspec.Struct, frozen=True):
    """An entry as it is shown; hashes are in hexadecimal."""

    number: int
    at: datetime
    kind: Kind
    action: str
    target: str
    actor: str
    request_id: str
    detail: dict[str, Any]
    previous: str
    hash: str


class Filters(msgspec.Struct, frozen=True):
    """Which entries are asked for; None is any. `since` is the first moment, `until` the first one
    that is not."""

    kind: Kind | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def moment_problem(moment: datetime) -> str | None:
    """What is wrong with a moment that is asked for, in words; None if nothing is."""
    if moment.tzinfo is None:
        return "must have an offset, such as Z: 2026-07-01T12:00:00Z"
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return "must lie in the years 1 to 9999 in UTC, too"
    return None


async def list_entries(
    connection: Connection, project: str, limit: int, before: int | None, filters: Filters
) -> list[AuditEntry]:
    """Up to `limit` entries, the newest first, from before the number `before`."""
    asked = {**msgspec.structs.asdict(filters), "before": before}
    given = {name: value for name, value in asked.items() if value is not None}
    clauses = (_FILTERS[name].format(place) for place, name in enumerate(given, 2))
    query = f"{_ENTRIES} {' '.join(clauses)} order by number desc limit ${len(given) + 2}"
    rows = await connection.fetch(query, project, *given.values(), limit)
    return [
        AuditEntry(**{**dict(row), "detail": msgspec.json.decode(row["detail"])}) for row in rows
    ]


async def head_of(connection: Connection, project: str) -> Mark:
    """Where a project's chain ends.

    Raises:
        ProblemError: `not-found`, where there is no such project.
    """
    row = await connection.fetchrow(_HEAD, project)
    if row is None:
        raise ProblemError("not-found", f"There is no audit of a project {project!r}")
    return Mark(row["number"], row["hash"])


async def links(
    pool: store.Pool, project: str, after: int, through: int
) -> AsyncIterator[list[Link]]:
    """The entries from behind one number through another, in pages. No connection is held while
    the caller is at a page, however slow it is."""
    while after < through:
        async with store.borrow(pool) as connection:
            rows = await connection.fetch(_ON, project, after, through, PAGE)
        if not rows:
            return
        yield [Link(**dict(row)) for row in rows]
        after = rows[-1]["number"]
