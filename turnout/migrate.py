"""Bring a database to the schema of this code: numbered SQL files, each applied once.

Routers and workers of the release before serve meanwhile, so a file must not hold them up. A file
that waits for a lock makes everybody wait who comes after it, be it for the weakest of locks: it
waits for a moment only, gives up, lets the others pass and tries again. `migrations/README.md` says
what an author heeds.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import asyncpg
import msgspec

from experiments.store import Connection

# Two runners at once would both see a file as not applied; the number only has to be ours.
LOCK: Final = 0x7475726E6F757401
_POLL: Final = 0.2
_QUERY_TIMEOUT: Final = 30.0
_FILE_TIMEOUT: Final = 600.0  # a later migration may rewrite a large table
_INDEX_TIMEOUT: Final = 6 * 3600.0

_NAME: Final = re.compile(r"(?P<number>[0-9]{4})_[a-z0-9_]+\.sql")
_ALONE: Final = re.compile(r"--[ \t]*outside a transaction[ \t]*\n")
_CONCURRENTLY: Final = re.compile(
    r"\s*create\s+(unique\s+)?index\s+concurrently\s+if\s+not\s+exists\s+(?P<name>[a-z0-9_]+)\s"
    r"[^;]*(?:;\s*)?",
    re.IGNORECASE,
)
_COMMENT: Final = re.compile(r"--[^\n]*\n")

_HAS_TABLE: Final = "select to_regclass('migration') is not null"
CREATE: Final = """
create table if not exists migration (
    number int primary key,
    name text not null,
    checksum bytea not null,
    applied_at timestamptz not null
)
"""
_APPLIED: Final = "select number, name, checksum from migration order by number"
_INSERT: Final = (
    "insert into migration (number, name, checksum, applied_at) values ($1, $2, $3, now())"
)
_LOCK_TIMEOUT: Final = "select set_config('lock_timeout', $1, $2)"
_INVALID: Final = """
    select exists (
        select from pg_index i join pg_class c on c.oid = i.indexrelid
        where c.relname = $1 and pg_table_is_visible(c.oid) and not i.indisvalid
    )
"""


class MigrationError(Exception):
    """The database cannot be brought to this schema; the message says why in one line."""


class Patience(msgspec.Struct, frozen=True):
    """How long to wait for others, in seconds."""

    lock: float = 1.0
    """For a lock that a file needs: so long is everybody held up who comes after it."""
    pause: float = 2.0
    """Until it is tried again: so long do others have to pass."""
    all_locks: float = 300.0
    """For the locks of a file, with all its attempts."""
    runner: float = 600.0
    """For another runner to end."""


PATIENCE: Final = Patience()


class Migration(msgspec.Struct, frozen=True):
    """A numbered SQL file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        """The SHA-256 of the text, by which a file that was changed afterwards is noticed."""
        return hashlib.sha256(self.sql.encode()).digest()

    @property
    def index(self) -> str | None:
        """The index that the file builds while others write, which no transaction can do; None of
        any other file.

        Raises:
            MigrationError: if the file says that it does, and does anything else.
        """
        if _ALONE.match(self.sql) is None:
            return None
        match = _CONCURRENTLY.fullmatch(_COMMENT.sub("", self.sql))
        if match is None:
            raise MigrationError(
                f"{self.name} stands outside a transaction, so it may do one thing only:"
                " create index concurrently if not exists NAME on …"
            )
        return match["name"]


class Status(msgspec.Struct, frozen=True):
    """The files that a database has, and those that it lacks."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]


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


async def status(connection: Connection, source: Traversable | None = None) -> Status:
    """What a database has and lacks. It reads only, and waits for nobody.

    Raises:
        MigrationError: if the database is ahead of the code, or differs from it.
    """
    known = migrations(source)
    applied = []
    if await connection.fetchval(_HAS_TABLE, timeout=_QUERY_TIMEOUT):
        applied = await connection.fetch(_APPLIED, timeout=_QUERY_TIMEOUT)
    left = pending(applied, known)
    return Status(tuple(row["name"] for row in applied), tuple(each.name for each in left))


async def migrate(
    connection: Connection,
    source: Traversable | None = None,
    progress: Callable[[str], None] = lambda _: None,
    patience: Patience = PATIENCE,
) -> list[str]:
    """Apply what is missing, each file in its own transaction, and give the names applied.

    A second runner waits for the first one and then finds nothing to do. A database that lacks
    nothing is left as it is, and nobody is waited for.

    Args:
        progress: is told, in a line, what is applied and who is waited for.

    Raises:
        MigrationError: if the database is ahead of the code or differs from it, if another runner
            does not end in time, or if a file fails; then the files before it stay applied.
    """
    known = migrations(source)
    if known and not (await status(connection, source)).pending:
        return []
    await _lock(connection, progress, patience.runner)
    try:
        await connection.execute(CREATE, timeout=_QUERY_TIMEOUT)
        left = pending(await connection.fetch(_APPLIED, timeout=_QUERY_TIMEOUT), known)
        for migration in left:
            progress(f"applying {migration.name}")
            await _apply(connection, migration, progress, patience)
    finally:
        if not connection.is_closed():  # a connection that was lost has lost its locks, too
            await connection.execute("select pg_advisory_unlock($1)", LOCK, timeout=_QUERY_TIMEOUT)
    return [migration.name for migration in left]


async def _lock(connection: Connection, progress: Callable[[str], None], seconds: float) -> None:
    """Be the only runner. It asks again and again and never queues up: a statement that waits has a
    snapshot, for whose end an index that the other builds concurrently would wait."""
    deadline = time.monotonic() + seconds
    told = False
    while not await connection.fetchval(
        "select pg_try_advisory_lock($1)", LOCK, timeout=_QUERY_TIMEOUT
    ):
        if time.monotonic() > deadline:
            raise MigrationError(
                f"another migration of this database did not end within {seconds:.0f} s"
            )
        if not told:
            progress("another process migrates this database: waiting for it")
            told = True
        await asyncio.sleep(_POLL)


async def _apply(
    connection: Connection,
    migration: Migration,
    progress: Callable[[str], None],
    patience: Patience,
) -> None:
    deadline = time.monotonic() + patience.all_locks
    while True:
        try:
            if migration.index is None:
                await _apply_file(connection, migration, patience)
            else:
                await _build_index(connection, migration, migration.index)
            return
        except asyncpg.LockNotAvailableError as error:
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"{migration.name} did not get its locks within {patience.all_locks:.0f} s:"
                    " something reads or writes its tables all the time (see pg_stat_activity)"
                ) from error
            progress(f"{migration.name} waits for others to be done with its tables")
            await asyncio.sleep(patience.pause)
        except TimeoutError as error:
            limit = _FILE_TIMEOUT if migration.index is None else _INDEX_TIMEOUT
            raise MigrationError(f"{migration.name} did not end within {limit:.0f} s") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            # Details and hints of Postgres stand on lines of their own.
            raise MigrationError(f"{migration.name}: {str(error).partition(chr(10))[0]}") from error


async def _apply_file(connection: Connection, migration: Migration, patience: Patience) -> None:
    async with connection.transaction():
        await connection.execute(
            _LOCK_TIMEOUT, f"{patience.lock * 1000:.0f}ms", True, timeout=_QUERY_TIMEOUT
        )
        await connection.execute(migration.sql, timeout=_FILE_TIMEOUT)
        await _note(connection, migration)


async def _build_index(connection: Connection, migration: Migration, name: str) -> None:
    """Building it waits for transactions, but holds nobody up. One that was broken off leaves an
    index that is written and never read: that is dropped, and built again."""
    if await connection.fetchval(_INVALID, name, timeout=_QUERY_TIMEOUT):
        # The name is of our own file, and of letters, digits and underscores only.
        await connection.execute(f"drop index concurrently {name}", timeout=_INDEX_TIMEOUT)
    await connection.execute(_COMMENT.sub("", migration.sql), timeout=_INDEX_TIMEOUT)
    await _note(connection, migration)


async def _note(connection: Connection, migration: Migration) -> None:
    await connection.execute(
        _INSERT, migration.number, migration.name, migration.checksum, timeout=_QUERY_TIMEOUT
    )
