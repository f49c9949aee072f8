"""Postgres: its command lines, its signs of life, its database."""

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from turnout.embedded.binaries import Account, Binaries
from turnout.embedded.errors import EmbeddedError
from turnout.embedded.folder import Folder, finish_half_made, make_half_made
from turnout.embedded.process import Child, spawn

USER = "turnout"
DATABASE = "turnout"
PORT = 5432  # only part of the socket's name
START_SECONDS = 120.0  # recovery after a crash replays up to 4 GB of log
CONNECT_SECONDS = 30.0
HERE = "/proc/self/cwd"  # see `folder`

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "cluster_name": "turnout",
    "max_connections": "50",
    "shared_buffers": "512MB",
    # Events come in all the time: with the usual checkpoints every page would be logged whole.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",  # compiling costs more than it gains on queries of milliseconds
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_checkpoints": "off",
}
# For tests: a power cut may take all, and nobody cares.
THROWAWAY_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",  # their folder may be in memory
}


def database_url(sockets: Path) -> str:
    """The address of our database; with the port, lest PGPORT count."""
    return f"postgresql://{USER}@/{DATABASE}?host={sockets}&port={PORT}"


async def initialise(
    folder: Folder, binaries: Binaries, account: Account | None, *, durable: bool
) -> None:
    """Make the cluster, all or nothing.

    Authentication is `trust`: the door is the folder of the sockets, which only the servers' user
    and root can pass. `peer` would add nothing to that, and fails where a user id has no name.
    """
    place = await asyncio.to_thread(make_half_made, folder, account)
    initdb = await spawn(
        "initdb",
        [
            binaries.postgres / "initdb",
            *("-D", HERE, "--username", USER, "--auth", "trust", "--encoding", "UTF8"),
            # The builtin provider sorts alike on every machine, whatever locales that has.
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            *(("--no-instructions",) if durable else ("--no-instructions", "--no-sync")),
        ],
        folder=place,
        account=account,
        farewell=signal.SIGTERM,
        log=folder.logs / "initdb.log",
    )
    try:
        await initdb.finish(START_SECONDS)
    finally:
        await initdb.stop(0)
    await asyncio.to_thread(finish_half_made, folder)


async def start(
    folder: Folder, binaries: Binaries, account: Account | None, sockets: Path, *, durable: bool
) -> Child:
    """Start the server; SIGINT is its fast shutdown."""
    settings = {
        **SETTINGS,
        **({} if durable else THROWAWAY_SETTINGS),
        "unix_socket_directories": str(sockets),
    }
    return await spawn(
        "Postgres",
        [
            binaries.postgres / "postgres",
            *("-D", HERE),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ],
        folder=folder.postgres,
        account=account,
        farewell=signal.SIGINT,
        log=folder.logs / "postgres.log",
    )


async def until_ready(server: Child, folder: Folder, sockets: Path) -> None:
    """Wait until it takes connections and has our database."""

    async def ready() -> bool:
        return await asyncio.to_thread(_says_ready, folder, server.pid)

    await server.until(ready, START_SECONDS)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await _ensure_database(sockets)
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise EmbeddedError(
            f"Postgres does not answer ({error or 'timeout'}): {await server.last_words()}"
        ) from error


def _says_ready(folder: Folder, pid: int) -> bool:
    try:
        lines = (folder.postgres / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


async def _ensure_database(sockets: Path) -> None:
    # At every start and not with initdb, for we may have been killed in between.
    connection = await asyncpg.connect(host=str(sockets), port=PORT, user=USER, database="postgres")
    try:
        if not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE
        ):
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
    finally:
        await connection.close()
