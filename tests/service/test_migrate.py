"""Migrations on a real Postgres."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from turnout.migrate import MigrationError, migrate, migrations

FIRST = "create table first (x int); insert into first values (1);"
SECOND = "create table second (x int);"


@pytest_asyncio.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to an empty database."""
    connected = await asyncpg.connect(database_url)
    yield connected
    await connected.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two migrations, and files that are none."""
    (tmp_path / "0001_first.sql").write_text(FIRST)
    (tmp_path / "0002_second.sql").write_text(SECOND)
    (tmp_path / "README.md").write_text("not a migration")
    return tmp_path


async def tables(connection: asyncpg.Connection) -> set[str]:
    """The tables of the database."""
    rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def test_our_own_are_applied_once(connection: asyncpg.Connection) -> None:
    names = [migration.name for migration in migrations()]
    assert names[0] == "0001_the_loop.sql"
    assert await migrate(connection) == names
    assert {"migration", "experiment", "segment", "outcome_id"} <= await tables(connection)
    assert await migrate(connection) == []


async def test_files_go_in_by_their_numbers(connection: asyncpg.Connection, folder: Path) -> None:
    assert await migrate(connection, folder) == ["0001_first.sql", "0002_second.sql"]
    (folder / "0010_tenth.sql").write_text("create table tenth (x int)")
    (folder / "0003_third.sql").write_text("create table third (x int)")
    assert await migrate(connection, folder) == ["0003_third.sql", "0010_tenth.sql"]
    assert await tables(connection) == {"migration", "first", "second", "third", "tenth"}
    rows = await connection.fetch("select number, name from migration order by number")
    assert [tuple(row) for row in rows][-1] == (10, "0010_tenth.sql")


async def test_two_runners_at_once(database_url: str, folder: Path) -> None:
    (folder / "0003_slow.sql").write_text("select pg_sleep(0.2)")
    connections = [await asyncpg.connect(database_url) for _ in range(3)]
    try:
        done = await asyncio.gather(*(migrate(each, folder) for each in connections))
    finally:
        for each in connections:
            await each.close()
    assert sorted(map(len, done)) == [0, 0, 3]


async def test_a_file_that_fails_leaves_nothing_of_itself(
    connection: asyncpg.Connection, folder: Path
) -> None:
    wrong = folder / "0003_wrong.sql"
    wrong.write_text("create table third (x int); insert into nowhere values (1);")
    with pytest.raises(MigrationError) as raised:
        await migrate(connection, folder)
    assert str(raised.value) == '0003_wrong.sql: relation "nowhere" does not exist'
    assert await tables(connection) == {"migration", "first", "second"}
    wrong.write_text("create table third (x int)")
    assert await migrate(connection, folder) == ["0003_wrong.sql"]


async def test_a_file_that_was_changed_is_refused(
    connection: asyncpg.Connection, folder: Path
) -> None:
    await migrate(connection, folder)
    (folder / "0001_first.sql").write_text(f"{FIRST} -- and more")
    (folder / "0003_third.sql").write_text("create table third (x int)")
    with pytest.raises(MigrationError, match=r"0001_first\.sql was changed"):
        await migrate(connection, folder)
    assert "third" not in await tables(connection)


async def test_a_database_ahead_of_the_code_is_refused(
    connection: asyncpg.Connection, folder: Path
) -> None:
    await migrate(connection, folder)
    (folder / "0002_second.sql").unlink()
    with pytest.raises(MigrationError, match=r"ahead of this version: it has 0002_second\.sql"):
        await migrate(connection, folder)


async def test_a_file_that_was_passed_over_is_refused(
    connection: asyncpg.Connection, folder: Path
) -> None:
    first = (folder / "0001_first.sql").rename(folder / "kept")
    await migrate(connection, folder)
    first.rename(folder / "0001_first.sql")
    with pytest.raises(MigrationError, match=r"0001_first\.sql was never applied"):
        await migrate(connection, folder)


@pytest.mark.parametrize("name", ["3_third.sql", "third.sql", "0003-third.sql"])
def test_a_file_without_a_number_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("select 1")
    with pytest.raises(MigrationError, match="is not named like"):
        migrations(folder)


def test_a_number_stands_for_one_file(folder: Path) -> None:
    (folder / "0002_other.sql").write_text("select 1")
    with pytest.raises(MigrationError, match="the same number"):
        migrations(folder)


async def test_a_runner_whose_connection_is_cut_says_so(
    connection: asyncpg.Connection, folder: Path
) -> None:
    (folder / "0003_cut.sql").write_text("select pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(MigrationError, match=r"^0003_cut\.sql: [^\n]+$"):
        await migrate(connection, folder)
