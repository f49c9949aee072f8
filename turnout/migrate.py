"""Bring a database to the schema of this code: numbered SQL files, each applied once."""

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable

import asyncpg
import msgspec

from experiments.store import Connection

# Two runners at once would both see a file as not applied; the number only has to be ours.
_LOCK = 0x7475726E6F757401
_LOCK_TIMEOUT = 60.0
_QUERY_TIMEOUT = 30.0
_FILE_TIMEOUT = 600.0  # a later migration may rewrite a large table

_NAME = re.compile(r"(?P<number>[0-9]{4})_[a-z0-9_]+\.sql")

_CREATE = """
create table if not exists migration (
    number int primary key,
    name text not null,
    checksum bytea not null,
    applied_at timestamptz not null
)
"""
_APPLIED = "select number, name, checksum from migration order by number"
_INSERT = "insert into migration (number, name, checksum, applied_at) values ($1, $2, $3, now())"


class MigrationError(Exception):
    """The database cannot be brought to this schema; the message says why in one line."""


class Migration(msgspec.Struct, frozen=True):
    """A numbered SQL file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        """The SHA-256 of the text, by which a file that was changed afterwards is noticed."""
        return hashlib.sha256(self.sql.encode()).digest()


def migrations(source: Traversable | None = None) -> list[Migration]:
    """The files of the `migrations` package, or of another folder, in the order of their numbers.

    Raises:
        MigrationError: if an SQL file has no number, or two files have the same.
    """
    found: dict[int, Migration] = {}
    for file in (source or resources.files("migrations")).iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise MigrationError(f"{file.name} is not named like 0001_what_it_does.sql")
        number = int(match["number"])
        if number in found:
            raise MigrationError(f"{file.name} and {found[number].name} have the same number")
        found[number] = Migration(number, file.name, file.read_text(encoding="utf-8"))
    return [found[number] for number in sorted(found)]


def pending(applied: Sequence[asyncpg.Record], known: Sequence[Migration]) -> list[Migration]:
    """What is left to apply, given the rows of the table `migration`.

    Raises:
        MigrationError: if the rows are not the first of the known files, unchanged.
    """
    by_number = {migration.number: migration for migration in known}
    for row in applied:
        migration = by_number.get(row["number"])
        if migration is None:
            raise MigrationError(
                f"the database is ahead of this version: it has {row['name']}, which is not known"
                " here; use the version of Turnout that migrated it"
            )
        if migration.checksum != row["checksum"]:
            raise MigrationError(
                f"{migration.name} was changed after it was applied to this database"
            )
    last = max((row["number"] for row in applied), default=0)
    done = {row["number"] for row in applied}
    left = [migration for migration in known if migration.number not in done]
    if left and left[0].number < last:
        raise MigrationError(
            f"{left[0].name} was never applied to this database, though later files were"
        )
    return left


async def migrate(connection: Connection, source: Traversable | None = None) -> list[str]:
    """Apply what is missing, each file in its own transaction, and give the names applied.

    A second runner waits for the first one and then finds nothing to do.

    Raises:
        MigrationError: if the database is ahead of the code or differs from it, if another runner
            does not end in time, or if a file fails; then the files before it stay applied.
    """
    known = migrations(source)
    try:
        await connection.execute("select pg_advisory_lock($1)", _LOCK, timeout=_LOCK_TIMEOUT)
    except TimeoutError as error:
        raise MigrationError(
            f"another migration of this database did not end within {_LOCK_TIMEOUT:.0f} s"
        ) from error
    try:
        await connection.execute(_CREATE, timeout=_QUERY_TIMEOUT)
        applied = await connection.fetch(_APPLIED, timeout=_QUERY_TIMEOUT)
        left = pending(applied, known)
        for migration in left:
            await _apply(connection, migration)
    finally:
        if not connection.is_closed():  # a connection that was lost has lost its locks, too
            await connection.execute("select pg_advisory_unlock($1)", _LOCK, timeout=_QUERY_TIMEOUT)
    return [migration.name for migration in left]


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql, timeout=_FILE_TIMEOUT)
            await connection.execute(
                _INSERT,
                migration.number,
                migration.name,
                migration.checksum,
                timeout=_QUERY_TIMEOUT,
            )
    except TimeoutError as error:
        raise MigrationError(
            f"{migration.name} did not end within {_FILE_TIMEOUT:.0f} s"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        # Details and hints of Postgres stand on lines of their own.
        raise MigrationError(f"{migration.name}: {str(error).partition(chr(10))[0]}") from error
