"""Commands that work on the database itself: migrations, keys and projects."""

import contextlib
import getpass
import os
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import msgspec

from experiments import projects, store
from experiments.announce import announce
from experiments.audit import log as audit
from experiments.decoding import decode
from experiments.keys import ApiKey, KeyRequest, new_key, wrong_scope
from experiments.model import Duration, parse_duration
from experiments.problems import ProblemError
from experiments.projects import Project, ProjectChange, get_project
from turnout.backends import (
    CannotRunError,
    backends,
    connected,
    connection_to,
    postgres_needed,
    redis_client,
    utc_now,
)
from turnout.embedded import EmbeddedError, running
from turnout.migrate import Status, migrate, migrations, status
from turnout.settings import Settings


@contextlib.asynccontextmanager
async def addresses(settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """Where the database is, and the Redis to announce a change to: the configured ones, else those
    of a Turnout that runs on the data folder. Only a database that neither gives is started, for
    the moment; without a Redis nobody is told, and routers find the change at their next poll."""
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
            yield database_url, redis_url
    except EmbeddedError as error:
        raise CannotRunError(str(error)) from error


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[tuple[store.Pool, str]]:
    """The database of `addresses`, migrated, and that Redis."""
    async with addresses(settings) as (url, redis_url), connected(url) as pool:
        with postgres_needed():
            yield pool, redis_url


async def migrate_database(settings: Settings, progress: Callable[[str], None]) -> list[str]:
    """Bring the database up to date; the names of all migrations that it has now.

    Args:
        progress: is told what is applied, and who is waited for.
    """
    async with addresses(settings) as (url, _), connection_to(url) as connection:
        await migrate(connection, progress=progress)
        return [migration.name for migration in migrations()]


async def migration_status(settings: Settings) -> Status:
    """The migrations that the database has, and those that it lacks; nothing is changed."""
    async with addresses(settings) as (url, _), connection_to(url) as connection:
        return await status(connection)


async def create_key(settings: Settings, wanted: KeyRequest) -> str:
    """Make a key in the project of the settings, which is made where it does not exist yet.

    Raises:
        CannotRunError: if what is wanted makes no sense, or the database cannot be reached.
    """
    now = utc_now()
    wrong = wrong_scope(wanted.role, wanted.scope)
    if wrong is not None:
        raise CannotRunError(f"--scope: {wrong}")
    text, key = new_key(
        settings.project,
        wanted.role,
        wanted.note,
        now,
        secrets.token_bytes,
        None if wanted.expires_in is None else _after(now, wanted.expires_in),
        scope=wanted.scope,
        rate_limit=wanted.rate_limit,
        created_by=commander(),
    )
    async with database(settings) as (pool, redis_url):
        async with pool.acquire() as connection, connection.transaction():
            await store.create_project(connection, settings.project, now)
            await store.insert_key(connection, key)
            await audit.note(connection, made_key(key, now))
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
            if revoked:
                entry = _command(settings.project, "key.revoke", f"keys/{key_id}", {})
                await audit.note(connection, entry)
        await _announce(redis_url, settings.project)
    return revoked


async def list_projects(settings: Settings) -> list[tuple[Project, int]]:
    """All projects, each with the number of its live keys."""
    async with database(settings) as (pool, _), pool.acquire() as connection:
        return await projects.list_projects(connection, utc_now())


async def project(settings: Settings, change: ProjectChange) -> Project:
    """The project of the settings, with what was named of it changed; if anything was, it is made
    where it does not exist yet.

    Raises:
        CannotRunError: if there is none, or the database cannot be reached.
        ProblemError: `conflict` if how its units are stored is fixed already; `invalid` with every
            wrong field.
    """
    async with database(settings) as (pool, redis_url):
        async with pool.acquire() as connection, connection.transaction():
            if change.is_empty:
                try:
                    return await get_project(connection, settings.project)
                except ProblemError as error:
                    raise CannotRunError(error.detail) from error
            await store.create_project(connection, settings.project, utc_now())
            changed = await projects.change_project(
                connection, settings.project, change, secrets.token_bytes
            )
            told: dict[str, Any] = msgspec.to_builtins(change)
            target = f"projects/{settings.project}"
            await audit.note(
                connection, _command(settings.project, "project.settings", target, told)
            )
        await _announce(redis_url, settings.project)
    return changed


def made_key(key: ApiKey, now: datetime) -> audit.Entry:
    """What the audit tells of a key that was made without a door."""
    assert key.created_by is not None, "whoever makes one says who they are"  # noqa: S101
    detail = {
        "role": key.role,
        "note": key.note,
        "scope": None if key.scope is None else list(key.scope),
        "rate_limit": key.rate_limit,
        "expires_at": None if key.expires_at is None else key.expires_at.isoformat(),
    }
    return audit.Entry(
        project=key.project,
        kind="command",
        action="key.create",
        target=f"keys/{key.id}",
        actor=key.created_by,
        at=now,
        detail=detail,
    )


def commander() -> str:
    """The actor who gives a command: the user of the operating system."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # in a container the number may have no name
        name = str(os.getuid())
    return f"command:{name}"


def _command(project: str, action: str, target: str, detail: dict[str, Any]) -> audit.Entry:
    return audit.Entry(
        project=project,
        kind="command",
        action=action,
        target=target,
        actor=commander(),
        at=utc_now(),
        detail=detail,
    )


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
