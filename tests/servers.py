"""Real servers for tests: a Postgres and a Valkey for each test process, clean for each test."""

import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from turnout.embedded import LiveServers, embedded_servers


@pytest_asyncio.fixture(scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServers]:
    """Servers that forget: started once in each worker of pytest-xdist, on a folder of its own."""
    folder = tmp_path_factory.mktemp("embedded")
    async with embedded_servers(folder, durable=False) as live:
        yield live


@pytest_asyncio.fixture
async def database_url(servers: LiveServers) -> AsyncIterator[str]:
    """A new and empty database, dropped afterwards with all connections to it."""
    name = f"test_{os.getpid()}_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy')
        yield urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def redis_url(servers: LiveServers) -> str:
    """An empty Redis. The whole server is emptied, so that keys of earlier tests cannot return."""
    async with Redis.from_url(servers.redis_url) as client:
        await client.flushall()
    return servers.redis_url
