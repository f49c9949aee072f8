"""Assembles a running Turnout: servers, parts, tasks, and the web server in front."""

import asyncio
import contextlib
import gc
import secrets
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry, disable_created_metrics

from analysis.api import AnalysisPlane
from experiments.writes import ControlPlane
from turnout.app import Operation, Planes, create_app, create_operation_app
from turnout.backends import CannotRunError, backends, connected, redis_client, utc_now
from turnout.embedded import EmbeddedError
from turnout.health import WorkerHealth
from turnout.parts import Base, RouterPart, controller_part, orphans_part, router_part
from turnout.serving import Task, listen, supervise, url_of
from turnout.settings import Process, Settings

WITH_ROUTER: Final[frozenset[Process]] = frozenset({"up", "serve"})
WITH_CONTROLLER: Final[frozenset[Process]] = frozenset({"up", "worker"})

_YOUNG_OBJECTS: Final = 20_000
"""Objects that are made before the collector looks at them: about those of a batch of outcomes."""


async def run(
    settings: Settings,
    announce: Callable[[str], None],
    stop: asyncio.Event,
    process: Process = "up",
) -> None:
    """Run the parts of Turnout that a process has, until `stop` is set.

    Args:
        announce: takes the lines that an operator should see: the address, the first admin key.

    Raises:
        CannotRunError: if it cannot start, or something that it needs has ended.
    """
    registry = CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
    with listen(settings.host, settings.port) as listener:
        try:
            async with (
                backends(settings) as behind,
                connected(behind.database_url) as pool,
                contextlib.aclosing(redis_client(behind.redis_url)) as redis,
                orphans_part(settings, pool, registry) as orphans,
                contextlib.AsyncExitStack() as stack,
            ):
                base = Base(settings, pool, redis, registry, orphans, announce)
                tasks: list[Task] = [orphans.run]
                router: RouterPart | None = None
                if process in WITH_ROUTER:
                    router = await stack.enter_async_context(router_part(base))
                    tasks += router.tasks
                if process in WITH_CONTROLLER:
                    tasks.append(controller_part(base).run)
                _spare_the_collector()
                announce(f"Turnout serves on {url_of(listener)}")
                await supervise(_app(base, router), listener, tasks, behind.died, stop)
                # The doors are shut: what they acknowledged last goes to Postgres while it is
                # still there.
                if router is not None:
                    await router.finish()
        except EmbeddedError as error:
            raise CannotRunError(str(error)) from error


def _spare_the_collector() -> None:
    """Keep the garbage collector from what lives as long as the process, and from looking at every
    batch of records while it passes through: they hold no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def _app(base: Base, router: RouterPart | None) -> ASGIApp:
    health = WorkerHealth(base.pool) if router is None else router.health
    operation = Operation(health, base.registry, new_request_id=lambda: uuid4().hex)
    if router is None:
        return create_operation_app(operation)
    return create_app(
        Planes(
            control=ControlPlane(base.pool, base.redis, utc_now, secrets.token_bytes),
            data=router.plane,
            analysis=AnalysisPlane(base.pool),
            operation=operation,
        )
    )
