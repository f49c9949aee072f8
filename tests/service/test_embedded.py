"""The embedded servers, with real processes: started, restarted, killed, refused."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from turnout.embedded import EmbeddedError, LiveServers, Servers, embedded_servers, running
from turnout.embedded.binaries import Account, Binaries, find_binaries, reachable, share
from turnout.embedded.folder import Folder, claim, orphans
from turnout.embedded.process import LOG_BYTES, Log, spawn

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="root alone runs servers as another user")

# Commits a row and a key, says so, and waits to be killed.
OTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
import asyncpg
from redis.asyncio import Redis
from turnout.embedded import embedded_servers

async def main():
    async with embedded_servers(Path(sys.argv[1])) as servers:
        connection = await asyncpg.connect(servers.database_url)
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        async with Redis.from_url(servers.redis_url) as client:
            await client.set("kept", 42)
        print("committed", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@contextmanager
def other_process(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has committed to servers of its own on `data_dir`."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, data_dir], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"committed\n"
        try:
            yield process
        finally:
            process.kill()


async def numbers(servers: Servers) -> tuple[int, int]:
    """What the database and Redis kept."""
    connection = await asyncpg.connect(servers.database_url)
    try:
        row = await connection.fetchval("SELECT n FROM kept")
    finally:
        await connection.close()
    async with Redis.from_url(servers.redis_url) as client:
        return int(row), int(await client.get("kept") or 0)


async def until_no_server(data_dir: Path) -> None:
    """Wait until no server runs in the folder."""
    async with asyncio.timeout(10):
        while orphans(Folder(root=data_dir)):  # noqa: ASYNC110  # other processes set no event
            await asyncio.sleep(0.05)


async def refusal(data_dir: Path) -> str:
    """Why the servers do not start: one line."""
    with pytest.raises(EmbeddedError) as caught:
        async with embedded_servers(data_dir, durable=False):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def runs(binaries: Binaries, account: Account, logs: Path) -> None:
    """Run the programs; `initdb` needs the libraries beside it too."""
    for program in (binaries.postgres / "initdb", binaries.valkey):
        child = await spawn(
            program.name,
            [program, "--version"],
            folder=Path("/"),
            account=account,
            farewell=signal.SIGTERM,
            log=logs / "version.log",
        )
        await child.finish(10)


def allow(path: Path, bits: int) -> None:
    """Set the permission bits."""
    path.chmod(bits)


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


async def test_cold_start_and_restart_keep_the_data(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    async with embedded_servers(data_dir) as servers:
        connection = await asyncpg.connect(servers.database_url)
        settings = await connection.fetchrow(
            "SELECT current_database() AS name, current_setting('TimeZone') AS zone, "
            "current_setting('fsync') AS fsync, current_setting('listen_addresses') AS tcp, "
            "current_setting('server_encoding') AS encoding, datlocale AS locale "
            "FROM pg_database WHERE datname = current_database()"
        )
        assert settings is not None
        assert tuple(settings) == ("turnout", "UTC", "on", "", "UTF8", "C.UTF-8")
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        async with Redis.from_url(servers.redis_url) as client:
            await client.set("kept", 7)
        assert (mode(data_dir), mode(data_dir / "run.json")) == (0o700, 0o600)
        sockets = Path(servers.redis_url.removeprefix("unix://")).parent
        assert mode(sockets) == 0o700
    assert not sockets.exists()
    assert not (data_dir / "run.json").exists()
    assert orphans(Folder(root=data_dir)) == {}

    async with embedded_servers(data_dir) as servers:
        assert await numbers(servers) == (7, 7)


async def test_durable_is_the_default_and_tests_do_without(servers: LiveServers) -> None:
    connection = await asyncpg.connect(servers.database_url)
    values = [
        await connection.fetchval("SELECT current_setting($1)", name)
        for name in ("fsync", "synchronous_commit", "full_page_writes", "jit")
    ]
    await connection.close()
    assert values == ["off"] * 4


async def test_each_test_has_an_empty_database_and_redis(database_url: str, redis_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.close()
    assert name.startswith("test_")
    async with Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0


async def test_a_second_start_is_refused_with_the_pid_and_can_find_the_first(
    tmp_path: Path,
) -> None:
    assert running(tmp_path) is None
    with other_process(tmp_path) as process:
        assert f"already running (pid {process.pid})" in await refusal(tmp_path)
        found = running(tmp_path)
        assert found is not None
        assert found.pid == process.pid
        assert await numbers(found) == (42, 42)
        process.kill()
    assert (tmp_path / "run.json").exists()
    assert running(tmp_path) is None
    await until_no_server(tmp_path)
    claim(Folder(root=tmp_path)).release()  # clears what the killed process left in /tmp


async def test_servers_end_by_themselves_when_we_are_killed(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        assert set(orphans(Folder(root=tmp_path)).values()) == {"postgres", "valkey-server"}
        process.kill()
    await until_no_server(tmp_path)
    log = (tmp_path / "logs" / "postgres.log").read_text()
    assert "received fast shutdown request" in log
    assert "database system is shut down" in log
    claim(Folder(root=tmp_path)).release()  # clears what the killed process left in /tmp


async def test_the_next_start_takes_over_from_a_killed_process(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        found = running(tmp_path)
        process.kill()
    assert found is not None
    # At once: the old servers are still shutting down.
    async with embedded_servers(tmp_path) as servers:
        assert await numbers(servers) == (42, 42)
        stale = Path(found.redis_url.removeprefix("unix://")).parent
        assert not stale.exists()


async def test_the_next_start_recovers_when_everything_was_killed(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path) as servers:
        async with Redis.from_url(servers.redis_url) as client:
            await client.set("kept", 42)
        connection = await asyncpg.connect(servers.database_url)
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        postmaster = tmp_path / "postgres" / "postmaster.pid"
        stale = postmaster.read_text()
        for pid in orphans(Folder(root=tmp_path)):
            os.kill(pid, signal.SIGKILL)
        await servers.died()
        connection.terminate()
    await until_no_server(tmp_path)
    # After a restart of a container the old pid is likely to be some other process of the user.
    postmaster.write_text(stale.replace(stale.partition("\n")[0], str(os.getpid()), 1))
    async with embedded_servers(tmp_path) as servers:
        assert await numbers(servers) == (42, 42)
    assert (
        "database system was not properly shut down"
        in (tmp_path / "logs" / "postgres.log").read_text()
    )


async def test_an_orphan_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.embedded.servers.ORPHAN_SECONDS", 0.3)
    with other_process(tmp_path) as process:
        for pid in orphans(Folder(root=tmp_path)):
            os.kill(pid, signal.SIGSTOP)
        process.kill()
    async with embedded_servers(tmp_path) as servers:
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SELECT n FROM kept") == 42
        await connection.close()


@pytest.mark.parametrize("program", ["postgres", "valkey-server"])
async def test_the_death_of_a_server_is_noticed(tmp_path: Path, program: str) -> None:
    async with embedded_servers(tmp_path, durable=False) as servers:
        waiting = [asyncio.create_task(servers.died()) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        victims = [pid for pid, name in orphans(Folder(root=tmp_path)).items() if name == program]
        os.kill(min(victims), signal.SIGKILL)
        async with asyncio.timeout(5):
            first, second = await asyncio.gather(*waiting)
    name = {"postgres": "Postgres", "valkey-server": "Valkey"}[program]
    assert first == second
    assert first.startswith(f"{name} was killed by signal 9: ")
    assert "\n" not in first


async def test_a_server_that_fails_to_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path, durable=False):
        pass
    with (tmp_path / "postgres" / "postgresql.auto.conf").open("a") as file:
        file.write("work_mem = nonsense\n")
    message = await refusal(tmp_path)
    assert message.startswith("Postgres exited 1: ")
    assert "work_mem" in message
    assert "postgres.log" in message
    assert orphans(Folder(root=tmp_path)) == {}
    assert running(tmp_path) is None


async def test_an_interrupted_initialisation_is_made_anew(tmp_path: Path) -> None:
    half_made = tmp_path / "postgres.new" / "base"
    half_made.mkdir(parents=True)
    async with embedded_servers(tmp_path, durable=False):
        assert not (tmp_path / "postgres.new").exists()


async def test_another_postgres_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    message = await refusal(tmp_path)
    assert "Postgres 15" in message
    assert "pg_dump" in message


async def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"turnout":2,"pid":1,"sockets":""}\n')
    message = await refusal(tmp_path)
    assert "has layout 2" in message
    assert '"turnout":2' in (tmp_path / "lock").read_text(), "it stays as it is"


async def test_folders_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "thesis.tex").touch()
    assert "is not empty and is no data folder of turnout" in await refusal(others)
    assert [path.name for path in others.iterdir()] == ["thesis.tex"]
    assert "is not a folder" in await refusal(others / "thesis.tex")


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
async def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    allow(tmp_path, 0o500)
    assert "is not writable" in await refusal(tmp_path)
    assert "is not writable" in await refusal(tmp_path / "below")


async def test_a_folder_with_a_journal_and_a_folder_of_ours_with_more_are_taken(
    tmp_path: Path,
) -> None:
    (tmp_path / "journal").mkdir()
    async with embedded_servers(tmp_path, durable=False):
        pass
    (tmp_path / "dump.sql").touch()
    async with embedded_servers(tmp_path, durable=False):
        pass
    assert (tmp_path / "journal").is_dir()
    assert (tmp_path / "dump.sql").is_file()


@needs_root
async def test_a_data_folder_that_the_servers_cannot_reach_is_served(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    data_dir = private / "data"
    async with embedded_servers(data_dir, durable=False):
        owners = {(data_dir / name).stat().st_uid for name in ("postgres", "redis")}
        assert owners == {65534}
        assert not reachable(data_dir / "postgres", Account(uid=65534, gid=65534))
    assert mode(private) == 0o700
    assert private.stat().st_uid == 0


@needs_root
async def test_programs_that_the_servers_cannot_reach_are_copied_once(tmp_path: Path) -> None:
    account = Account(uid=65534, gid=65534)
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert not reachable(Path(shutil.copy(sys.executable, private)), account)
    place = Path(tempfile.mkdtemp(prefix="turnout-test-", dir="/tmp"))
    try:
        allow(place, 0o777)
        found = find_binaries(None)
        with pytest.raises(EmbeddedError, match="can reach neither"):
            share(found, account, [private, place])  # anybody could put programs there
        allow(place, 0o755)
        copy = share(found, account, [private, place])
        assert reachable(copy.postgres / "postgres", account)
        made = (copy.postgres / "postgres").stat().st_ctime_ns
        assert share(found, account, [private, place]) == copy
        assert (copy.postgres / "postgres").stat().st_ctime_ns == made
        assert len(os.listdir(place)) == 1
        await runs(copy, account, tmp_path)
    finally:
        shutil.rmtree(place)


def test_a_large_log_is_cut_and_the_last_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("an earlier run\n")
    log = Log(path)
    assert log.tail() == "(nothing in the log)"
    descriptor = log.open()
    os.write(descriptor, b"x" * LOG_BYTES)
    log.trim()
    os.write(descriptor, b"first\n\nsecond\n")
    os.close(descriptor)
    assert path.read_text() == "first\n\nsecond\n"
    assert log.tail() == "first | second"
    assert path.with_name("server.log.1").stat().st_size > LOG_BYTES


async def test_a_record_without_its_holder_is_not_believed(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path, durable=False) as servers:
        before = running(tmp_path)
        assert before == Servers(
            database_url=servers.database_url, redis_url=servers.redis_url, pid=os.getpid()
        )
        stale = Servers(database_url="postgresql://x", redis_url="unix://x", pid=1)
        (tmp_path / "run.json").write_bytes(msgspec.json.encode(stale))
        assert running(tmp_path) is None
