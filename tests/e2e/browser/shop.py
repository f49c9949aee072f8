"""A Turnout that runs with the world behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
from redis.asyncio import Redis

from tests.e2e.browser.world import PROJECT, STEPS, make_world
from tests.running import Host, Turnout, running
from turnout.embedded import LiveServers
from turnout.migrate import migrate


@asynccontextmanager
async def shop_of(
    servers: LiveServers, folder: Path, *, a_day: float = 1.0, steps: int = STEPS, **settings: Any
) -> AsyncIterator[Turnout]:
    """Make the world on a database of its own, and start a Turnout there; as the shop sees it.

    Args:
        a_day, steps: how much of a world, as `make_world` says.
        settings: of the Turnout.
    """
    name = f"shop_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'create database "{name}" template template0')
    finally:
        await admin.close()
    database_url = urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))
    connection = await asyncpg.connect(database_url)
    try:
        await migrate(connection)
    finally:
        await connection.close()
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=3) as pool,
        Redis.from_url(servers.redis_url) as redis,
    ):
        keys = await make_world(pool, redis, a_day=a_day, steps=steps)
        async with running(database_url, servers.redis_url, folder, **settings) as turnout:
            shop = Turnout(Host(turnout.url, pool, redis), PROJECT, keys)
            yield shop
            await shop.close()
