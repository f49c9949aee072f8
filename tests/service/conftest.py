"""A migrated database for each test that asks for one."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest_asyncio
from redis.asyncio import Redis

from tests.service.loop import Service
from turnout.embedded import LiveServers
from turnout.migrate import migrate


def database_named(servers: LiveServers, name: str) -> str:
    """The address of a database on these servers."""
    return urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))


@pytest_asyncio.fixture(scope="session")
async def template(servers: LiveServers) -> str:
    """The name of a migrated database to copy: copying takes a tenth of migrating."""
    name = f"template_{os.getpid()}"
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'create database "{name}" template template0')
    finally:
        await admin.close()
    connection = await asyncpg.connect(database_named(servers, name))
    try:
        await migrate(connection)
    finally:
        await connection.close()
    return name


@asynccontextmanager
async def copy_of(template: str, servers: LiveServers) -> AsyncIterator[str]:
    """A new database that is like the template, dropped afterwards with all connections to it."""
    name = f"migrated_{os.getpid()}_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'create database "{name}" template "{template}" strategy file_copy')
        yield database_named(servers, name)
        await admin.execute(f'drop database "{name}" with (force)')
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def migrated_url(servers: LiveServers, template: str) -> AsyncIterator[str]:
    """A new database with all migrations."""
    async with copy_of(template, servers) as url:
        yield url


@pytest_asyncio.fixture
async def pool(migrated_url: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a new database with all migrations."""
    async with asyncpg.create_pool(
        migrated_url, min_size=1, max_size=5, command_timeout=30
    ) as connections:
        yield connections


@pytest_asyncio.fixture
async def service(pool: asyncpg.Pool, redis_url: str) -> AsyncIterator[Service]:
    """The loop on an empty database."""
    async with Redis.from_url(redis_url) as redis:
        yield Service(pool, redis)
