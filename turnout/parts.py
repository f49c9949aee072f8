"""The two parts of a Turnout: the router behind the doors, and the controller.

`up` runs both in one process, `serve` the first and `worker` the second.
"""

import asyncio
import contextlib
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from uuid import uuid4

import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.controller import Controller
from analysis.controller import Pace as ControllerPace
from analysis.telemetry import AnalysisMetrics
from experiments import store
from experiments.keys import new_key
from router.api import DataPlane
from router.journal import Journal, JournalError, Limits
from router.metrics import JournalCollector, OrphanCollector, RouterMetrics
from router.orphans import Orphans, journals_of
from router.recording import Recorder
from router.refresher import Refresher
from router.shipper import Pace as ShipperPace
from router.shipper import Shipper
from turnout.backends import CannotRunError, line_of, postgres_needed, utc_now
from turnout.health import RouterHealth
from turnout.serving import DRAIN_SECONDS, Task
from turnout.settings import Settings


class Base(msgspec.Struct, frozen=True):
    """What every part stands on."""

    settings: Settings
    pool: store.Pool
    redis: Redis
    registry: CollectorRegistry
    orphans: Orphans
    announce: Callable[[str], None]
    """Takes the lines that an operator should see."""


class RouterPart(msgspec.Struct, frozen=True):
    """The data plane: it assigns, records and ships."""

    plane: DataPlane
    health: RouterHealth
    tasks: tuple[Task, ...]
    journal: Journal
    shipper: Shipper

    async def finish(self) -> None:
        """Ship what was acknowledged last, withdraw the journal and remove its folder. The doors
        must be shut by then. If Postgres has gone, the folder stays for others to adopt."""
        with contextlib.suppress(OSError, TimeoutError, JournalError, *store.PostgresError):
            await asyncio.wait_for(self.shipper.finish(), timeout=DRAIN_SECONDS)
            await self.journal.close(clear=True)


def new_shipper(settings: Settings, pool: store.Pool, journal: Journal) -> Shipper:
    """The shipper of a journal, be it our own or an orphan."""
    return Shipper(
        pool,
        journal,
        utc_now,
        random.Random(),  # noqa: S311 - jitter, not secrets
        ShipperPace(interval=settings.length("ship_every").total_seconds()),
    )


@contextlib.asynccontextmanager
async def orphans_part(
    settings: Settings, pool: store.Pool, registry: CollectorRegistry
) -> AsyncIterator[Orphans]:
    """Every process adopts the journals of those that died."""
    orphans = Orphans(settings.data_path, utc_now, partial(new_shipper, settings, pool))
    registry.register(OrphanCollector(orphans))
    try:
        yield orphans
    finally:
        await orphans.close()


@contextlib.asynccontextmanager
async def router_part(base: Base) -> AsyncIterator[RouterPart]:
    """Open a journal and load the first snapshot.

    Raises:
        CannotRunError: if either cannot be done.
    """
    settings = base.settings
    async with contextlib.AsyncExitStack() as stack:
        journal = await _journal(base)
        stack.push_async_callback(journal.close)
        shipper = new_shipper(settings, base.pool, journal)
        poll = settings.length("snapshot_poll").total_seconds()
        refresher = Refresher(base.pool, base.redis, utc_now, poll)
        with postgres_needed():
            # Nothing that can fail stands between the commit of the first key and its only showing.
            admin_key = await bootstrap(base.pool, settings.project)
            if admin_key is not None:
                base.announce(
                    f"Admin key of project {settings.project} (shown this once): {admin_key}"
                )
            await refresher.refresh()
            # The watermark has to wait for what the last process left and for what this one will
            # acknowledge: it must know of both before the doors open, and of the older one first.
            await base.orphans.claim()
            await shipper.announce()
        metrics = RouterMetrics(base.registry)
        base.registry.register(JournalCollector(journal, shipper, base.orphans, utc_now))
        yield RouterPart(
            plane=DataPlane(refresher, Recorder(journal, metrics), metrics, utc_now),
            health=RouterHealth(refresher, journal, utc_now),
            tasks=(refresher.run, shipper.run),
            journal=journal,
            shipper=shipper,
        )


def controller_part(base: Base) -> Controller:
    """The controller, which leads if no other does."""
    return Controller(
        base.pool,
        base.redis,
        utc_now,
        f"{socket.gethostname()}:{os.getpid()}:{uuid4()}",
        ControllerPace(
            base.settings.length("tick"), base.settings.length("lateness"), base.settings.keep
        ),
        AnalysisMetrics(base.registry),
    )


async def bootstrap(pool: store.Pool, project: str) -> str | None:
    """Make the first project and its admin key; the key's text, or None if there was one before."""
    now = utc_now()
    async with pool.acquire() as connection, connection.transaction():
        # In the order in which `keys create` takes them: the other way round would be a deadlock.
        await store.create_project(connection, project, now)
        await connection.execute("lock table api_key in share row exclusive mode")
        if await store.any_key(connection):
            return None
        text, key = new_key(project, "admin", "first admin key", now, secrets.token_bytes)
        await store.insert_key(connection, key)
        return text


async def _journal(base: Base) -> Journal:
    settings = base.settings
    try:
        return await Journal.begin(
            journals_of(settings.data_path),
            clock=utc_now,
            durability=settings.durability,
            limits=Limits(unshipped_bytes=settings.journal_limit_mib * 1024 * 1024),
            # One disk holds both, so one limit holds for both.
            beside=lambda: base.orphans.depth,
        )
    except (JournalError, OSError) as error:
        raise CannotRunError(f"cannot open the journal: {line_of(error)}") from error
