"""Commands that work on the database itself: migrations, keys and projects."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from datetime import datetime

from experiments import store
from experiments.announce import announce
from experiments.decoding import decode
from experiments.keys import ApiKey, Role, new_key
from experiments.model import Duration, parse_duration
from experiments.problems import ProblemError
from experiments.projects import Project, get_project, set_units
from experiments.units import Storage
from turnout.backends import (
    CannotRunError,
    backends,
    connected,
    postgres_needed,
    redis_client,
    utc_now,
)
from turnout.embedded import EmbeddedError, running
from turnout.migrate import migrations
from turnout.settings import Settings


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[store.Pool, str]]:
    """The database, and the Redis to announce a change to: the configured ones, else those of a
    Turnout that runs on the data folder. Only a database that neither gives is started, for the
    moment; without a Redis nobody is told, and routers find the change at their next poll."""
    try:
        if settings.database_url and settings.redis_url:
            database_url, redis_url = settings.database_url, settings.redis_url
        else:
            servers = running(settings.data_path)
            database_url = settings.database_url or (servers.database_url if servers else "")
            redis_url = settings.redis_url or (servers.redis_url if servers else "")
        async with contextlib.AsyncExitStack() as stack:
            if not database_url:
                behind = await stack.enter_async_context(backends(settings))
                database_url = behind.database_url
            pool = await stack.enter_async_context(connected(database_url))
            with postgres_needed():
                yield pool, redis_url
    except EmbeddedError as error:
        raise CannotRunError(str(error)) from error


async def migrate_database(settings: Settings) -> list[str]:
    """Bring the database up to date; the names of all migrations that it has now."""
    async with database(settings):
        return [migration.name for migration in migrations()]


async def create_key(settings: Settings, role: Role, note: str, expires_in: str | None) -> str:
    """Make a key in the project of the settings, which is made where it does not exist yet.

    Raises:
        CannotRunError: if `expires_in` is no duration, or the database cannot be reached.
    """
    now = utc_now()
    expires_at = None if expires_in is None else _after(now, expires_in)
    text, key = new_key(settings.project, role, note, now, secrets.token_bytes, expires_at)
    async with database(settings) as (pool, redis_url):
        async with pool.acquire() as connection, connection.transaction():
            await store.create_project(connection, settings.project, now)
            await store.insert_key(connection, key)
        await _announce(redis_url, settings.project)
    return text


async def list_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """The live keys of the project of the settings."""
    async with database(settings) as (pool, _), pool.acquire() as connection:
        return await store.live_keys(connection, settings.project)


async def revoke_key(settings: Settings, key_id: str) -> bool:
    """Revoke a key of the project of the settings; whether there was one."""
    async with database(settings) as (pool, redis_url):
        async with pool.acquire() as connection, connection.transaction():
            revoked = await store.revoke_key(connection, settings.project, key_id, utc_now())
        await _announce(redis_url, settings.project)
    return revoked


async def project(settings: Settings, units: Storage | None) -> Project:
    """The project of the settings, with its units stored this way from now on, if one is named;
    then it is made where it does not exist yet.

    Raises:
        CannotRunError: if there is none, or the database cannot be reached.
        ProblemError: `conflict` if how its units are stored is fixed already.
    """
    async with database(settings) as (pool, redis_url):
        async with pool.acquire() as connection, connection.transaction():
            if units is None:
                try:
                    return await get_project(connection, settings.project)
                except ProblemError as error:
                    raise CannotRunError(error.detail) from error
            await store.create_project(connection, settings.project, utc_now())
            changed = await set_units(connection, settings.project, units, secrets.token_bytes)
        await _announce(redis_url, settings.project)
    return changed


def _after(now: datetime, length: str) -> datetime:
    if decode(Duration, length).problems:
        raise CannotRunError(f"--expires-in must be a duration such as 30d, not {length}")
    try:
        return now + parse_duration(length)
    except OverflowError as error:
        raise CannotRunError(f"--expires-in {length} is longer than time itself") from error


async def _announce(redis_url: str, project: str) -> None:
    if not redis_url:
        return
    redis = redis_client(redis_url)
    try:
        await announce(redis, project)
    finally:
        await redis.aclose()
