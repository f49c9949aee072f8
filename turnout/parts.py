"""The two parts of a Turnout: the router behind the doors, and the controller.

`up` runs both in one process, `serve` the first and `worker` the second.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from typing import Final
from uuid import uuid4

import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.chronicle.chronicler import Chronicler
from analysis.chronicle.telemetry import ChronicleMetrics
from analysis.control.controller import Controller, database_time
from analysis.control.controller import Pace as ControllerPace
from analysis.control.telemetry import AnalysisMetrics
from experiments import store
from experiments.audit.log import note
from experiments.keys import new_key
from experiments.spans import NO_TRACES, Tracer
from experiments.webhooks.courier import Courier
from experiments.webhooks.herald import Herald
from experiments.webhooks.signing import SigningKey
from experiments.webhooks.telemetry import HeraldMetrics
from router.journal import Journal, JournalError, Limits
from router.metrics import JournalCollector, OrphanCollector, RouterMetrics
from router.orphans import Orphans, journals_of
from router.plane import DataPlane
from router.recording import Recorder
from router.refresher import Refresher, SnapshotCollector
from router.shelf import Shelf
from router.shipper import Pace as ShipperPace
from router.shipper import Shipper
from router.sticky import Sticky
from router.streams import StreamCollector, Streams
from turnout.admin import made_key
from turnout.backends import (
    CONNECT_TIMEOUT,
    CannotRunError,
    Database,
    UnreachableError,
    line_of,
    postgres_needed,
    utc_now,
)
from turnout.health import RouterHealth
from turnout.joining import Joining
from turnout.serving import DRAIN_SECONDS, Task
from turnout.settings import Settings

ALONE_TIMEOUT: Final = 3.0
"""For Postgres to answer a start that can do without."""

logger = logging.getLogger(__name__)


class Base(msgspec.Struct, frozen=True):
    """What every part stands on."""

    settings: Settings
    database: Database
    redis: Redis
    sticky_redis: Redis
    """For the first variants of sticky experiments, and nothing else."""
    registry: CollectorRegistry
    orphans: Orphans
    announce: Callable[[str], None]
    """Takes the lines that an operator should see."""
    joined: asyncio.Event
    """Set once Postgres was reached: what needs it begins then."""
    signing_key: SigningKey | None
    """From which the secrets of webhooks follow."""
    tracer: Tracer = NO_TRACES

    @property
    def pool(self) -> store.Pool:
        """Connections to the database, once that is open."""
        return self.database.pool


class RouterPart(msgspec.Struct, frozen=True):
    """The data plane: it assigns, records and ships."""

    plane: DataPlane
    health: RouterHealth
    tasks: tuple[Task, ...]
    journal: Journal
    shipper: Shipper
    shelf: Shelf

    def database_time(self) -> datetime:
        """The time by the database's clock, as far as it was heard of: what hands do is dated by
        the clock that the controller goes by, and not by that of a machine of its own."""
        return utc_now() - self.shipper.clock_offset

    async def finish(self) -> None:
        """Ship what was acknowledged last, withdraw the journal and remove its folder. The doors
        must be shut by then. If Postgres has gone, the folder stays for others to adopt."""
        await self.shelf.save()
        with contextlib.suppress(OSError, TimeoutError, JournalError, *store.PostgresError):
            await asyncio.wait_for(self.shipper.finish(), timeout=DRAIN_SECONDS)
            await self.journal.close(clear=True)


def new_shipper(
    settings: Settings, pool: store.Pool, journal: Journal, tracer: Tracer = NO_TRACES
) -> Shipper:
    """The shipper of a journal, be it our own or an orphan."""
    return Shipper(
        pool,
        journal,
        utc_now,
        random.Random(),  # noqa: S311 - jitter, not secrets
        ShipperPace(interval=settings.length("ship_every").total_seconds()),
        tracer,
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
    """Open a journal and load the first snapshot: from Postgres, or, if nobody answers there, the
    one on disk. Then the router serves alone, and joins the others when Postgres is back.

    Raises:
        CannotRunError: if the journal cannot be opened, or there is no snapshot.
        MigrationError: if Postgres answers, and is ahead of this code.
    """
    settings = base.settings
    async with contextlib.AsyncExitStack() as stack:
        journal = await _journal(base)
        stack.push_async_callback(journal.close)
        shipper = new_shipper(settings, base.pool, journal, base.tracer)
        poll = settings.length("snapshot_poll").total_seconds()
        shelf = Shelf(settings.data_path)
        refresher = Refresher(base.pool, base.redis, utc_now, poll, shelf.put)

        async def join(patience: float) -> None:
            await base.database.open(patience)
            with postgres_needed():
                # Nothing that can fail stands between the commit of the first key and its only
                # showing.
                admin_key = await bootstrap(base.pool, settings.project)
                if admin_key is not None:
                    base.announce(
                        f"Admin key of project {settings.project} (shown this once): {admin_key}"
                    )
                await refresher.refresh()
                # The watermark has to wait for what the last process left and for what this one
                # acknowledges: it must know of both before the doors open, and of the older one
                # first. A router that has served alone tells both as soon as it can: what it has
                # acknowledged counts from the oldest record on.
                await base.orphans.claim()
                await shipper.announce()

        joining = Joining(join, base.joined, random.Random())  # noqa: S311 - jitter, not secrets
        kept = await asyncio.to_thread(shelf.load)
        try:
            await joining.now(CONNECT_TIMEOUT if kept is None else ALONE_TIMEOUT)
        except UnreachableError as error:
            if kept is None:
                raise
            if refresher.refreshed_at is None:  # it may have got so far, and what it has is newer
                await refresher.restore(kept.publications, kept.as_of)
            logger.error(
                "serving from the snapshot on disk",
                extra={"as_of": kept.as_of, "error": str(error)},
            )
            with contextlib.suppress(OSError, *store.PostgresError):  # nobody can be told yet
                await base.orphans.claim()  # what they hold counts towards the journal's limit
        metrics = RouterMetrics(base.registry)
        base.registry.register(JournalCollector(journal, shipper, base.orphans, utc_now))
        patience = settings.length("sticky_timeout").total_seconds()
        sticky = Sticky(base.sticky_redis, metrics, patience)
        stack.push_async_callback(sticky.close)
        streams = Streams(refresher, utc_now)
        base.registry.register(StreamCollector(streams))
        base.registry.register(SnapshotCollector(refresher))
        yield RouterPart(
            plane=DataPlane(
                refresher,
                Recorder(journal, metrics),
                metrics,
                utc_now,
                sticky,
                streams,
            ),
            health=RouterHealth(refresher, journal, shelf, joining, utc_now),
            tasks=(
                partial(joining.then, refresher.run),
                partial(once, base.joined, shipper.run),
                partial(shelf.run, lambda: refresher.refreshed_at),
            ),
            journal=journal,
            shipper=shipper,
            shelf=shelf,
        )


async def once(joined: asyncio.Event, task: Task) -> None:
    """Do what needs Postgres, once that was reached."""
    await joined.wait()
    await task()


def controller_part(base: Base) -> Controller:
    """The controller, which leads if no other does."""
    return Controller(
        base.pool,
        base.redis,
        database_time,
        time.monotonic,
        f"{socket.gethostname()}:{os.getpid()}:{uuid4()}",
        ControllerPace(
            base.settings.length("tick"), base.settings.length("lateness"), base.settings.keep
        ),
        AnalysisMetrics(base.registry),
        base.tracer,
    )


def chronicler_part(base: Base) -> Chronicler:
    """The chronicler, which keeps what pages need of reports. Any number of processes may have
    one."""
    return Chronicler(
        base.pool,
        database_time,
        time.monotonic,
        base.settings.length("lateness"),
        ChronicleMetrics(base.registry),
    )


def herald_part(base: Base) -> Herald:
    """The herald, which tells others what was decided. Any number of processes may have one."""
    return Herald(
        base.pool,
        Courier(base.settings.webhook_proxy, base.tracer),
        base.signing_key,
        utc_now,
        random.Random(),  # noqa: S311 - jitter, not secrets
        HeraldMetrics(base.registry),
        base.settings.public_url,
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
        text, key = new_key(
            project, "admin", "first admin key", now, secrets.token_bytes, created_by="system"
        )
        await store.insert_key(connection, key)
        await note(connection, made_key(key, now))
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
