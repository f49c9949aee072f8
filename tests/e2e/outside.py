"""A Postgres and a Valkey that are somebody else's, and come and go."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import rmtree

import asyncpg

from tests.e2e.commands import servers_of, until
from turnout.embedded import postgres, valkey
from turnout.embedded.binaries import Binaries, find_binaries, server_account
from turnout.embedded.folder import Folder, forget_postmaster, make_sockets, prepare
from turnout.embedded.process import Child


class Outside:
    """A Postgres and a Valkey that come back under the same address."""

    def __init__(self, root: Path) -> None:
        """On a new folder."""
        root.mkdir()
        self.folder = Folder(root=root)
        self.account = server_account()
        self.binaries: Binaries = find_binaries(self.account)
        self.sockets = make_sockets(self.account)
        self.database_url = postgres.database_url(self.sockets)
        self.redis_url = valkey.redis_url(self.sockets)
        self.postgres: Child | None = None
        self.redis: Child | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The settings that name them."""
        return {"TURNOUT_DATABASE_URL": self.database_url, "TURNOUT_REDIS_URL": self.redis_url}

    async def start_postgres(self) -> None:
        """Start Postgres, making its cluster the first time."""
        where = (self.folder, self.binaries, self.account)
        if not self.folder.postgres.exists():
            await postgres.initialise(*where, durable=False)
        # Durable, for a crash would take what is committed otherwise.
        self.postgres = await postgres.start(*where, self.sockets, durable=True)
        await postgres.until_ready(self.postgres, self.folder, self.sockets)

    async def start_redis(self) -> None:
        """Start Valkey."""
        self.redis = await valkey.start(
            self.folder, self.binaries, self.account, self.sockets, durable=False
        )
        await valkey.until_ready(self.redis, self.sockets)

    async def kill_postgres(self) -> None:
        """`kill -9`; its own children end when they notice."""
        if self.postgres:
            await self.postgres.stop(0)
            until(lambda: "postgres" not in servers_of(self.folder.root).values(), "all has ended")
            forget_postmaster(self.folder)
            self.postgres = None

    async def kill_redis(self) -> None:
        """`kill -9`."""
        if self.redis:
            await self.redis.stop(0)
            self.redis = None


@asynccontextmanager
async def outside(root: Path) -> AsyncIterator[Outside]:
    """Both servers, running."""
    servers = Outside(root)
    prepare(servers.folder, servers.account, servers.binaries.major)
    try:
        await servers.start_postgres()
        await servers.start_redis()
        yield servers
    finally:
        await servers.kill_postgres()
        await servers.kill_redis()
        rmtree(servers.sockets)


async def outcomes_in(database_url: str) -> Counter[str]:
    """How often each unit's outcome is in Postgres."""
    connection = await asyncpg.connect(database_url)
    try:
        return Counter(row["unit"] for row in await connection.fetch("select unit from outcome"))
    finally:
        await connection.close()
