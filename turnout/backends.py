"""The Postgres and the Redis behind a Turnout: somebody else's, or our own."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from experiments import store
from router.sticky import TRIPS, longest_trip
from turnout.embedded import LiveServers, embedded_servers
from turnout.migrate import migrate
from turnout.settings import Settings

OLDEST_POSTGRES: Final = 150_000
CONNECT_TIMEOUT: Final = 10.0
QUERY_TIMEOUT: Final = 30.0
CONNECTIONS: Final = 12
"""To Postgres, at most, for one process. They are made as they are needed."""

_REFUSALS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,  # a wrong password is one
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
_CONNECTION: Final[dict[str, Any]] = {
    "timeout": CONNECT_TIMEOUT,
    "command_timeout": QUERY_TIMEOUT,
    "server_settings": {
        "application_name": "turnout",
        "timezone": "UTC",
        # A segment leaves the journal once its rows are committed: that has to be on disk.
        "synchronous_commit": "on",
        # Whoever disappears without a word (a power cut, a cable) loses its locks soon.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # And whoever is stopped in the midst of a change: until its locks are gone, no harm to what
        # it was changing can be rolled back.
        "idle_in_transaction_session_timeout": "10s",
    },
}


logger = logging.getLogger(__name__)


class CannotRunError(Exception):
    """Turnout cannot run; one line says why."""


class UnreachableError(CannotRunError):
    """Postgres is away, or does not let us in. It may be back soon, and let us in then."""


class RefusedError(UnreachableError):
    """Postgres does not let us in: a matter of the settings, here or there."""


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


class Database:
    """A database behind a door that is shut until it was found to be of the right age.

    Through the pool nobody gets to a database that this code may not fit to: before `open` has
    succeeded, borrowing a connection fails at once, as if nobody answered.
    """

    def __init__(
        self,
        url: str,
        connections: int,
        connection_class: type[asyncpg.Connection] = asyncpg.Connection,
    ) -> None:
        """Nothing is connected yet."""
        self._url = url
        self._is_open = False
        self.pool: store.Pool = asyncpg.create_pool(
            url,
            min_size=0,  # it connects when somebody needs it
            max_size=connections,
            connect=self._connect,
            connection_class=connection_class,
            **_CONNECTION,
        )

    async def open(self, patience: float = CONNECT_TIMEOUT) -> None:
        """Check the version and migrate; from then on the pool gives connections.

        Args:
            patience: how long to wait for a connection, in seconds.

        Raises:
            UnreachableError: if it cannot be reached, or does not let us in.
            CannotRunError: if it is too old, or the URL cannot be read.
            MigrationError: if it is ahead of this code.
        """
        if self._is_open:
            return
        async with connection_to(self._url, patience) as connection:
            await migrate(connection, progress=_say_step)
        self._is_open = True

    async def _connect(self, *arguments: Any, **options: Any) -> Any:
        if not self._is_open:
            raise asyncpg.InterfaceError("the database was not reached since the start")
        return await asyncpg.connect(*arguments, **options)


@contextlib.asynccontextmanager
async def connection_to(
    url: str, patience: float = CONNECT_TIMEOUT
) -> AsyncIterator[store.Connection]:
    """A connection to a database as it stands, be it migrated or not.

    Raises:
        UnreachableError: if it cannot be reached, does not let us in, or refuses what is done.
        CannotRunError: if it is too old, or the URL cannot be read.
    """
    try:
        connection = await asyncpg.connect(url, **_CONNECTION | {"timeout": patience})
    except _REFUSALS as error:
        raise RefusedError(f"cannot reach Postgres: {line_of(error)}") from error
    except (OSError, TimeoutError, *store.PostgresError) as error:
        raise UnreachableError(f"cannot reach Postgres: {line_of(error)}") from error
    except ValueError as error:  # what it says may show a part of the password
        raise CannotRunError("the database URL cannot be read: postgresql://...") from error
    try:
        with postgres_needed():
            version = int(await connection.fetchval("show server_version_num"))
            if version < OLDEST_POSTGRES:
                raise CannotRunError(f"Postgres 15 or later is needed, this is {version // 10_000}")
            yield connection
    finally:
        with contextlib.suppress(OSError, TimeoutError, *store.PostgresError):
            await connection.close(timeout=5)


@contextlib.asynccontextmanager
async def database_at(
    url: str,
    connections: int = CONNECTIONS,
    connection_class: type[asyncpg.Connection] = asyncpg.Connection,
) -> AsyncIterator[Database]:
    """A database that is to be opened. Its connections are closed afterwards."""
    database = Database(url, connections, connection_class)
    async with contextlib.AsyncExitStack() as stack:
        await database.pool
        stack.push_async_callback(_close, database.pool)
        yield database


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[store.Pool]:
    """A pool of connections to a database of the right age, migrated.

    Raises:
        CannotRunError, MigrationError: as `Database.open`.
    """
    async with database_at(url) as database:
        await database.open()
        yield database.pool


async def _close(pool: store.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), timeout=5)
    except TimeoutError:
        pool.terminate()


@contextlib.contextmanager
def postgres_needed() -> Iterator[None]:
    """Without Postgres the work within cannot be done.

    Raises:
        UnreachableError: if it fails, is lost, or refuses something.
    """
    try:
        yield
    except (OSError, TimeoutError, *store.PostgresError) as error:
        raise UnreachableError(f"Postgres does not do its part: {line_of(error)}") from error


def redis_client(url: str, kind: type[Redis] = Redis) -> Redis:
    """A client of Redis that gives up soon: Redis is a hint here, never waited for.

    Raises:
        CannotRunError: if the URL is none of a Redis. Whether one answers there does not matter.
    """
    return _client(kind, url, socket_connect_timeout=2, socket_timeout=10, health_check_interval=30)


def sticky_client(url: str, patience: float, kind: type[Redis] = Redis) -> Redis:
    """A client of Redis for `Sticky` alone, whose answers wait `patience` seconds.

    Raises:
        CannotRunError: as `redis_client`.
    """
    seconds = longest_trip(patience)
    return _client(
        kind, url, max_connections=TRIPS, socket_connect_timeout=seconds, socket_timeout=seconds
    )


def _client(kind: type[Redis], url: str, **options: Any) -> Redis:
    try:
        client: Redis = kind.from_url(url, retry=Retry(NoBackoff(), 0), **options)
    except ValueError as error:
        raise CannotRunError(f"wrong Redis URL: {line_of(error)}") from error
    return client


def _say_step(line: str) -> None:
    logger.warning("migrating", extra={"step": line})


def line_of(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
