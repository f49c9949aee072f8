"""Commands that work on the database itself: migrations and keys."""

import contextlib
import secrets
from collections.abc import AsyncIterator

from experiments import store
from experiments.announce import announce
from experiments.decoding import decode
from experiments.keys import ApiKey, Role, new_key
from experiments.model import Duration, parse_duration
from turnout.embedded import EmbeddedError, running
from turnout.migrate import migrations
from turnout.service import Backends, CannotRunError, backends, connected, redis_client, utc_now
from turnout.settings import Settings


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[tuple[store.Pool, Backends]]:
    """The database of a Turnout that runs, or one that is started for the moment."""
    try:
        servers = None if settings.database_url else running(settings.data_path)
        if servers is not None:
            behind = Backends(servers.database_url, servers.redis_url, None)
            async with connected(behind.database_url) as pool:
                yield pool, behind
        else:
            async with backends(settings) as behind, connected(behind.database_url) as pool:
                yield pool, behind
    except EmbeddedError as error:
        raise CannotRunError(str(error)) from error


async def migrate_database(settings: Settings) -> list[str]:
    """Bring the database up to date; the names of all migrations that it has now."""
    async with _database(settings):
        return [migration.name for migration in migrations()]


async def create_key(settings: Settings, role: Role, note: str, expires_in: str | None) -> str:
    """Make a key in the project of the settings, which is made where it does not exist yet.

    Raises:
        CannotRunError: if `expires_in` is no duration, or the database cannot be reached.
    """
    now = utc_now()
    expires_at = None
    if expires_in is not None:
        if decode(Duration, expires_in).problems:
            raise CannotRunError(f"--expires-in must be a duration such as 30d, not {expires_in}")
        expires_at = now + parse_duration(expires_in)
    text, key = new_key(settings.project, role, note, now, secrets.token_bytes, expires_at)
    async with _database(settings) as (pool, behind):
        async with pool.acquire() as connection, connection.transaction():
            await store.create_project(connection, settings.project, now)
            await store.insert_key(connection, key)
        await _announce(behind, settings.project)
    return text


async def list_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """The live keys of the project of the settings."""
    async with _database(settings) as (pool, _), pool.acquire() as connection:
        return await store.live_keys(connection, settings.project)


async def revoke_key(settings: Settings, key_id: str) -> bool:
    """Revoke a key of the project of the settings; whether there was one."""
    async with _database(settings) as (pool, behind):
        async with pool.acquire() as connection, connection.transaction():
            revoked = await store.revoke_key(connection, settings.project, key_id, utc_now())
        await _announce(behind, settings.project)
    return revoked


async def _announce(behind: Backends, project: str) -> None:
    redis = redis_client(behind.redis_url)
    try:
        await announce(redis, project)
    finally:
        await redis.aclose()
