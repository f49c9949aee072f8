"""The Postgres and the Redis behind a Turnout: somebody else's, or our own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from experiments import store
from turnout.embedded import LiveServers, embedded_servers
from turnout.migrate import migrate
from turnout.settings import Settings

OLDEST_POSTGRES: Final = 150_000
CONNECT_TIMEOUT: Final = 10.0
QUERY_TIMEOUT: Final = 30.0


class CannotRunError(Exception):
    """Turnout cannot run; one line says why."""


class Backends(msgspec.Struct, frozen=True):
    """The Postgres and the Redis to use. `died` returns, with a line, when one of ours has ended;
    it is None where both are somebody else's."""

    database_url: str
    redis_url: str
    died: Callable[[], Awaitable[str]] | None


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@contextlib.asynccontextmanager
async def backends(settings: Settings) -> AsyncIterator[Backends]:
    """The configured servers; what is not configured is started in the data folder."""
    if settings.database_url and settings.redis_url:
        yield Backends(settings.database_url, settings.redis_url, None)
        return
    async with embedded_servers(
        settings.data_path,
        with_postgres=not settings.database_url,
        with_valkey=not settings.redis_url,
    ) as servers:
        live: LiveServers = servers
        yield Backends(
            settings.database_url or live.database_url,
            settings.redis_url or live.redis_url,
            live.died,
        )


@contextlib.asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[store.Pool]:
    """A pool of connections to a database of the right age, migrated.

    Raises:
        CannotRunError: if it cannot be reached, is too old, or does not let us in.
        MigrationError: if it is ahead of this code.
    """
    try:
        pool = await asyncpg.create_pool(
            database_url,
            min_size=1,
            max_size=12,
            timeout=CONNECT_TIMEOUT,
            command_timeout=QUERY_TIMEOUT,
            server_settings={
                "application_name": "turnout",
                "timezone": "UTC",
                # A segment leaves the journal once its rows are committed: that has to be on disk.
                "synchronous_commit": "on",
                # Whoever disappears without a word (a power cut, a cable) loses its locks soon.
                "tcp_keepalives_idle": "10",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
            },
        )
    except (OSError, TimeoutError, *store.PostgresError) as error:
        raise CannotRunError(f"cannot reach Postgres: {line_of(error)}") from error
    except ValueError as error:  # what it says may show a part of the password
        raise CannotRunError("the database URL cannot be read: postgresql://...") from error
    try:
        with postgres_needed():
            async with pool.acquire() as connection:
                version = int(await connection.fetchval("show server_version_num"))
                if version < OLDEST_POSTGRES:
                    raise CannotRunError(
                        f"Postgres 15 or later is needed, this is {version // 10_000}"
                    )
                await migrate(connection)
        yield pool
    finally:
        try:
            await asyncio.wait_for(pool.close(), timeout=5)
        except TimeoutError:
            pool.terminate()


@contextlib.contextmanager
def postgres_needed() -> Iterator[None]:
    """Without Postgres the work within cannot be done.

    Raises:
        CannotRunError: if it fails, is lost, or refuses something.
    """
    try:
        yield
    except (OSError, TimeoutError, *store.PostgresError) as error:
        raise CannotRunError(f"Postgres does not do its part: {line_of(error)}") from error


def redis_client(url: str) -> Redis:
    """A client of Redis that gives up soon: Redis is a hint here, never waited for.

    Raises:
        CannotRunError: if the URL is none of a Redis. Whether one answers there does not matter.
    """
    try:
        client: Redis = Redis.from_url(
            url,
            socket_connect_timeout=2,
            socket_timeout=10,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=30,
        )
    except ValueError as error:
        raise CannotRunError(f"wrong Redis URL: {line_of(error)}") from error
    return client


def line_of(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
