"""Migrations on a real Postgres."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from turnout.migrate import (
    CREATE,
    LOCK,
    MigrationError,
    Patience,
    Status,
    migrate,
    migrations,
    status,
)

RELEASED = 25
"""The last migration of the release before."""

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


QUICK = Patience(lock=0.1, pause=0.05, all_locks=0.5, runner=0.5)


async def test_who_waits_for_another_runner_says_so_and_gives_up_in_time(
    connection: asyncpg.Connection, database_url: str, folder: Path
) -> None:
    other = await asyncpg.connect(database_url)
    told: list[str] = []
    try:
        await other.execute("select pg_advisory_lock($1)", LOCK)
        with pytest.raises(MigrationError, match="another migration of this database did not end"):
            await migrate(connection, folder, told.append, QUICK)
    finally:
        await other.close()
    assert told == ["another process migrates this database: waiting for it"]
    assert await migrate(connection, folder) == ["0001_first.sql", "0002_second.sql"]


async def test_runners_in_processes_of_their_own_apply_each_file_once(
    connection: asyncpg.Connection, database_url: str
) -> None:
    runners = [await _runner(database_url) for _ in range(4)]
    try:
        lines = [
            (await asyncio.wait_for(runner.communicate(), 60))[0].decode() for runner in runners
        ]
    finally:
        for runner in runners:
            if runner.returncode is None:
                runner.kill()
    assert sorted(map(int, lines))[:3] == [0, 0, 0]
    assert sum(map(int, lines)) == len(migrations())
    assert await connection.fetchval("select count(*) from migration") == len(migrations())


async def test_a_runner_that_is_killed_leaves_nothing_half_done(
    connection: asyncpg.Connection, database_url: str, folder: Path
) -> None:
    (folder / "0003_slow.sql").write_text("create table third (x int); select pg_sleep(60)")
    runner = await _runner(database_url, folder)
    try:
        async with asyncio.timeout(60):
            while not await connection.fetchval(_SLEEPS):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
    finally:
        runner.kill()
        await runner.wait()
    (folder / "0003_slow.sql").write_text("create table third (x int)")
    # The server notices that nobody is there when the statement ends, or when it is ended.
    await connection.execute(_END_SLEEPERS)
    assert await migrate(connection, folder) == ["0003_slow.sql"]


_SLEEPERS = (
    "select pid from pg_stat_activity where query like '%pg_sleep(60)%' and wait_event = 'PgSleep'"
    " and datname = current_database()"
)
_SLEEPS = f"select exists ({_SLEEPERS})"
_END_SLEEPERS = f"select pg_terminate_backend(pid) from ({_SLEEPERS}) s"  # noqa: S608 - our own
_RUN = """
import asyncio, asyncpg, sys
from pathlib import Path
from turnout.migrate import migrate
async def run():
    connection = await asyncpg.connect(sys.argv[1])
    print(len(await migrate(connection, Path(sys.argv[2]) if len(sys.argv) > 2 else None)))
asyncio.run(run())
"""


async def _runner(*arguments: str | Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _RUN, *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )


async def test_a_file_that_waits_for_a_lock_lets_others_pass(
    connection: asyncpg.Connection, database_url: str, folder: Path
) -> None:
    """A long query holds a table; a file that changes it must not hold up who comes after it."""
    await migrate(connection, folder)
    (folder / "0003_third.sql").write_text("alter table first add column y int")
    reader = await asyncpg.connect(database_url)
    told: list[str] = []
    try:
        reading = reader.transaction()
        await reading.start()
        await reader.fetch("select * from first")
        migrating = asyncio.create_task(
            migrate(connection, folder, told.append, Patience(lock=0.1, pause=0.05))
        )
        for _ in range(3):  # while it waits, others read: each has to be through in a moment
            other = await asyncpg.connect(database_url)
            assert await other.fetchval("select count(*) from first", timeout=5) == 1
            await other.close()
        while len(told) < 2:  # noqa: ASYNC110 - a list sets no event
            await asyncio.sleep(0.01)
        await reading.rollback()
        assert await asyncio.wait_for(migrating, 60) == ["0003_third.sql"]
    finally:
        await reader.close()
    assert told[:2] == [
        "applying 0003_third.sql",
        "0003_third.sql waits for others to be done with its tables",
    ]


async def test_a_file_that_never_gets_its_locks_gives_up(
    connection: asyncpg.Connection, database_url: str, folder: Path
) -> None:
    await migrate(connection, folder)
    (folder / "0003_third.sql").write_text("alter table first add column y int")
    reader = await asyncpg.connect(database_url)
    try:
        async with reader.transaction():
            await reader.fetch("select * from first")
            with pytest.raises(MigrationError, match=r"0003_third\.sql did not get its locks"):
                await migrate(connection, folder, patience=QUICK)
    finally:
        await reader.close()
    assert await migrate(connection, folder) == ["0003_third.sql"]


async def test_an_index_is_built_while_others_write_and_again_where_it_was_broken_off(
    connection: asyncpg.Connection, folder: Path
) -> None:
    await migrate(connection, folder)
    await connection.execute("insert into first values (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("create unique index concurrently first_x on first (x)")
    assert await connection.fetchval("select to_regclass('first_x') is not null")  # and invalid
    (folder / "0003_index.sql").write_text(
        "-- outside a transaction\n-- What is asked for by x.\n"
        "create index concurrently if not exists first_x on first (x);\n"
    )
    assert await migrate(connection, folder) == ["0003_index.sql"]
    assert await connection.fetchval(
        "select indisvalid and not indisunique from pg_index where indexrelid = 'first_x'::regclass"
    )


async def test_outside_a_transaction_a_file_can_only_build_an_index(
    connection: asyncpg.Connection, folder: Path
) -> None:
    (folder / "0003_two.sql").write_text(
        "-- outside a transaction\ncreate table third (x int);"
        " create index concurrently if not exists first_x on first (x);"
    )
    with pytest.raises(MigrationError, match=r"0003_two\.sql stands outside a transaction"):
        await migrate(connection, folder)
    assert "third" not in await tables(connection)


async def test_the_status_tells_what_is_missing_and_changes_nothing(
    connection: asyncpg.Connection, folder: Path
) -> None:
    assert await status(connection, folder) == Status((), ("0001_first.sql", "0002_second.sql"))
    assert await tables(connection) == set()
    await migrate(connection, folder)
    (folder / "0003_third.sql").write_text("create table third (x int)")
    assert await status(connection, folder) == Status(
        ("0001_first.sql", "0002_second.sql"), ("0003_third.sql",)
    )


@pytest.mark.parametrize("name", [m.name for m in migrations() if m.number > RELEASED])
def test_a_new_migration_holds_nobody_up(name: str) -> None:
    """Of what would: a table that is rewritten, or read in whole under a lock."""
    [sql] = [m.sql.lower() for m in migrations() if m.name == name]
    statements = " ".join(line.partition("--")[0] for line in sql.splitlines())
    new = set(re.findall(r"create table (\w+)", statements))
    for found in re.finditer(r"create (?:unique )?index (?:\w+ )?on (\w+)", statements):
        assert found[1] in new, "an index of an older table is built outside a transaction"
    assert not re.search(r"alter column \w+ (set data )?type|generated always as \(", statements)
    assert not re.search(r"\bset not null\b|\bvacuum\b|\bcluster\b", statements)
    assert not re.search(r"add column [^,;]*default (gen_random_uuid|clock_timestamp)", statements)


async def test_new_migrations_run_while_routers_read_and_write(database_url: str) -> None:
    """Short transactions of others come and go on every table of the release before: the files get
    their locks in between, and none of the others waits for long."""
    connection = await asyncpg.connect(database_url)
    other = await asyncpg.connect(database_url)
    stopping = asyncio.Event()
    try:
        for migration in migrations():
            if migration.number <= RELEASED:
                await connection.execute(migration.sql)
        await connection.execute(CREATE)
        await connection.executemany(
            "insert into migration values ($1, $2, $3, now())",
            [(m.number, m.name, m.checksum) for m in migrations() if m.number <= RELEASED],
        )

        async def traffic() -> int:
            rounds = 0
            while not stopping.is_set():
                async with other.transaction():
                    for table in ("project", "api_key", "experiment", "decision", "segment"):
                        await other.fetch(f"select count(*) from {table}", timeout=10)  # noqa: S608
                    await other.execute(
                        "insert into project (key, version, created_at) values ($1, 1, now())",
                        f"p-{rounds}",
                        timeout=10,
                    )
                rounds += 1
                await asyncio.sleep(0.001)
            return rounds

        serving = asyncio.create_task(traffic())
        applied = await migrate(connection, patience=Patience(pause=0.05))
        stopping.set()
        assert await serving > 0
        assert applied == [m.name for m in migrations() if m.number > RELEASED]
    finally:
        await connection.close()
        await other.close()
