"""Backup and restore of the database, by Postgres' own tools.

A backup is what `pg_dump` writes in its custom format: one state of the whole database, whatever is
written meanwhile. What makes a restored database more than a copy of the old one is done in the
transaction that restores it: routers, clients and Redis have seen what came after the backup, and
must not take what comes now for that.
"""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from experiments.audit.log import Entry, note
from experiments.store import Connection
from turnout.admin import addresses
from turnout.backends import CannotRunError, connection_to, line_of, utc_now
from turnout.embedded import EmbeddedError
from turnout.embedded.binaries import find_postgres
from turnout.migrate import migrate
from turnout.settings import Settings

CONNECT_SECONDS: Final = "10"
LOCK_WAIT: Final = "60s"
"""How long a backup waits for a table that a migration changes."""
_HEAD_LINES: Final = 64
_VERSION: Final = re.compile(r"\(PostgreSQL\) ([0-9]+)")
_NEWER_ONLY: Final = b"SET transaction_timeout = 0;\n"
"""What `pg_restore` 17 and later writes first, and servers before 17 do not know."""

_RELATIONS: Final = """
    select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
      and not exists (
          select from pg_depend d
          where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
      )
"""
# In the transaction that restores: never is there a database that looks like the old one and is
# not. A backup of an older release may lack what a later one has, and is migrated afterwards.
#
# First variants in Redis may be of epochs that are gone: they are looked up under another name.
# Versions that routers have seen do not come again, and all experiments are newer than any of them.
# Whoever was signed in is not, and nobody leads.
AFTERWARDS: Final = """
do $$
begin
    update public.project set version = version + 1000000;
    if exists (
        select from information_schema.columns
        where table_schema = 'public' and table_name = 'experiment' and column_name = 'version'
    ) then
        update public.project set sticky_id = gen_random_uuid();
        update public.experiment x set version = p.version
        from public.project p where p.key = x.project;
    end if;
    if to_regclass('public.page_session') is not null then
        delete from public.page_session;
    end if;
    update public.lease set term = term + 1, expires_at = '-infinity';
end
$$;
"""
_PROJECTS: Final = "select key from project order by key"
_STATE: Final = """
    select (select count(*) from experiment) as experiments,
           (select count(*) from exposure) as exposures,
           (select count(*) from outcome) as outcomes
"""


class Tools(msgspec.Struct, frozen=True):
    """A folder with Postgres' client programs, and their major version."""

    folder: Path
    major: int


class Restored(msgspec.Struct, frozen=True):
    """What a database holds that was restored."""

    experiments: int
    exposures: int
    outcomes: int
    migrated: tuple[str, ...]
    """The migrations that the backup lacked."""
    snapshot: Path | None
    """The snapshot of the data folder, which was of the old database and is removed."""

    def lines(self) -> Iterator[str]:
        """What an operator should see."""
        yield f"experiments: {self.experiments}"
        yield f"exposures: {self.exposures}"
        yield f"outcomes: {self.outcomes}"
        yield f"migrations that the backup lacked: {len(self.migrated)}"
        if self.snapshot is not None:
            yield f"removed the snapshot of the old database: {self.snapshot}"


async def back_up(settings: Settings, file: Path) -> int:
    """Write a backup of the database that the settings name; its size in bytes.

    It is written beside its place and moved there when it is whole and on disk, and replaces
    nothing.

    Raises:
        CannotRunError: if there is such a file, the database cannot be reached, or `pg_dump` of a
            fitting version is not there or fails.
    """
    _require_no(file)
    partial = file.with_name(f"{file.name}.partial")
    async with addresses(settings) as (url, _):
        async with connection_to(url) as connection:
            if not await connection.fetchval("select to_regclass('migration') is not null"):
                raise CannotRunError("there is nothing to back up: this is no database of Turnout")
            tools = fitting(_found(), connection.get_server_version().major)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise CannotRunError(
                f"{partial} is there: another backup is being written, or one was broken off;"
                " remove it if none is"
            ) from None
        except OSError as error:
            raise CannotRunError(f"cannot write {partial}: {error.strerror}") from error
        try:
            with os.fdopen(descriptor, "wb") as out:
                await asyncio.to_thread(_dump, tools, url, out)
                size = out.tell()
            await _listed([tools], partial)  # it can be read
            os.link(partial, file)
        except FileExistsError:
            raise CannotRunError(f"{file} is there: a backup replaces nothing") from None
        except OSError as error:
            raise CannotRunError(f"cannot write {file}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
    return size


async def restore(settings: Settings, file: Path, progress: Callable[[str], None]) -> Restored:
    """Restore a backup into the empty database that the settings name, and bring it up to date.

    All of it is one transaction, but for the migrations: a restore that fails leaves the database
    empty.

    Raises:
        CannotRunError: if the file is no backup of Turnout's, the database is not empty or cannot
            be reached, or Postgres' programs fail.
        MigrationError: if the backup is of a newer release.
    """
    reader = await _listed(_found(), file)
    async with addresses(settings) as (url, _):
        async with connection_to(url) as connection:
            if await connection.fetchval(_RELATIONS):
                raise CannotRunError(
                    "the database is not empty: restore into a new one, and keep the old one until"
                    " you have seen that all is there"
                )
        await asyncio.to_thread(_load, reader, url, file)
        # From here on routers that come up by the old snapshot would serve what is not so.
        snapshot = settings.data_path / "snapshot" / "publications"
        had_snapshot = snapshot.exists()
        snapshot.unlink(missing_ok=True)
        async with connection_to(url) as connection:
            migrated = await migrate(connection, progress=progress)
            await _tell_the_audit(connection, file)
            [row] = await connection.fetch(_STATE, timeout=600)
    return Restored(
        row["experiments"],
        row["exposures"],
        row["outcomes"],
        tuple(migrated),
        snapshot if had_snapshot else None,
    )


def _require_no(file: Path) -> None:
    if file.exists():
        raise CannotRunError(f"{file} is there: a backup replaces nothing")


def fitting(found: Sequence[Tools], server: int) -> Tools:
    """The programs to dump a server with: none that is older than it, and of the others the one
    that differs least, so that as many servers as can be take the backup in.

    Raises:
        CannotRunError: if there are none.
    """
    able = [tools for tools in found if tools.major >= server]
    if not able:
        known = ", ".join(f"{tools.major} in {tools.folder}" for tools in found) or "none"
        raise CannotRunError(
            f"the server is Postgres {server}, and needs a pg_dump of {server} or later: there is"
            f" {known}; put a newer one on the PATH"
        )
    return min(able, key=lambda tools: tools.major)


def _found() -> list[Tools]:
    """The programs on the PATH, and those of the embedded Postgres."""
    folders = []
    on_path = shutil.which("pg_dump")
    if on_path is not None:
        folders.append(Path(on_path).parent)
    with contextlib.suppress(EmbeddedError):  # there may be none where servers are external
        folders.append(find_postgres())
    found = []
    for folder in folders:
        said = subprocess.run(  # noqa: S603 - a program of Postgres', without a shell
            [folder / "pg_dump", "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        match = _VERSION.search(said.stdout)
        if match and all((folder / name).exists() for name in ("pg_restore", "psql")):
            found.append(Tools(folder, int(match[1])))
    return found


async def _listed(found: Sequence[Tools], file: Path) -> Tools:
    """The programs that can read a backup: the oldest that do.

    Raises:
        CannotRunError: if none can, or it is a backup of something else.
    """
    if not await asyncio.to_thread(file.is_file):
        raise CannotRunError(f"there is no file {file}")
    why = "Postgres' programs are not there: put pg_dump, pg_restore and psql on the PATH"
    for tools in sorted(found, key=lambda tools: tools.major):
        listed = await asyncio.to_thread(_list, tools, file)
        if listed.returncode == 0:
            if " TABLE DATA public migration " not in listed.stdout:
                raise CannotRunError(f"{file} is a backup, and none of Turnout's")
            return tools
        why = _last_words(listed.stderr)
    raise CannotRunError(f"{file} cannot be read as a backup: {why}")


def _list(tools: Tools, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - a program of Postgres', without a shell
        [tools.folder / "pg_restore", "--list", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def _dump(tools: Tools, url: str, out: IO[bytes]) -> None:
    place, environment = _place(url)
    done = subprocess.run(  # noqa: S603 - a program of Postgres', without a shell
        [
            tools.folder / "pg_dump",
            *("--format=custom", "--no-owner", "--no-privileges", "--no-password"),
            *(f"--lock-wait-timeout={LOCK_WAIT}", f"--dbname={place}"),
        ],
        env=environment,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRunError(f"the backup failed: {_last_words(done.stderr)}")
    out.seek(0, os.SEEK_END)  # the program wrote by its own hand
    os.fsync(out.fileno())


def _load(tools: Tools, url: str, file: Path) -> None:
    """The backup as SQL, and what follows, through `psql` in one transaction."""
    place, environment = _place(url)
    with (
        subprocess.Popen(  # noqa: S603 - a program of Postgres', without a shell
            [tools.folder / "pg_restore", "--no-owner", "--no-privileges", "--file=-", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as reader,
        subprocess.Popen(  # noqa: S603 - as above
            [
                tools.folder / "psql",
                *("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"),
                *("--single-transaction", "--output=/dev/null", f"--dbname={place}", "--file=-"),
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as writer,
    ):
        assert reader.stdout and reader.stderr and writer.stdin and writer.stderr  # noqa: S101, PT018
        try:
            for _ in range(_HEAD_LINES):
                line = reader.stdout.readline()
                if line != _NEWER_ONLY:
                    writer.stdin.write(line)
            shutil.copyfileobj(reader.stdout, writer.stdin, 1024 * 1024)
            if reader.wait() != 0:
                # What has come so far must not be committed.
                writer.kill()
                said = reader.stderr.read().decode(errors="replace")
                raise CannotRunError(f"{file} cannot be read to its end: {_last_words(said)}")
            writer.stdin.write(AFTERWARDS.encode())
            writer.stdin.close()
        except BrokenPipeError:
            reader.kill()  # the other has ended, and says why
        said = writer.stderr.read().decode(errors="replace")
        if writer.wait() != 0:
            raise CannotRunError(f"the restore failed, nothing was changed: {_last_words(said)}")


def _place(url: str) -> tuple[str, dict[str, str]]:
    """A database's address without its password, which whoever lists processes would see, and an
    environment that has it."""
    parts = urlsplit(url)
    environment = os.environ | {"PGCONNECT_TIMEOUT": CONNECT_SECONDS, "PGOPTIONS": ""}
    words = parse_qsl(parts.query)
    secret = [value for name, value in words if name == "password"]
    user, mark, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    if colon:
        secret = [unquote(password)]
    if secret:
        environment["PGPASSWORD"] = secret[0]
    kept = urlencode([word for word in words if word[0] != "password"], quote_via=quote)
    return parts._replace(netloc=f"{name}{mark}{host}", query=kept).geturl(), environment


async def _tell_the_audit(connection: Connection, file: Path) -> None:
    at = utc_now()
    async with connection.transaction():
        for row in await connection.fetch(_PROJECTS):
            entry = Entry(
                project=row["key"],
                kind="command",
                action="database.restore",
                target="database",
                actor=f"command:{os.environ.get('USER') or os.getuid()}",
                at=at,
                detail={"file": file.name},
            )
            await note(connection, entry)


def _last_words(said: str) -> str:
    """What a program said last, in one line."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = next((line for line in lines if "ERROR" in line or "error" in line), "")
    return line_of(Exception(told or (lines[-1] if lines else "it said nothing")))
