"""Assembles a running Turnout: servers, parts, tasks, and the web server in front."""

import asyncio
import contextlib
import gc
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry, disable_created_metrics

from analysis.planning.api import PlanningPlane
from analysis.reports.api import AnalysisPlane
from dashboard.assets import Assets
from dashboard.plane import PagesPlane
from dashboard.rendering import Renderer
from dashboard.standalone import press_of
from dashboard.streams import Live, LiveCollector
from experiments.doors import Gate
from experiments.key_uses import UsesCollector, UsesKeeper
from experiments.limits import RateLimiter
from experiments.rate_shares import Exchange
from experiments.webhooks.api import WebhookPlane
from experiments.webhooks.courier import Courier
from experiments.writes import ControlPlane
from router.epochs import Epochs
from router.flagd import FlagSets
from router.local_api import LocalPlane
from turnout.app import Operation, Planes, create_app, create_operation_app
from turnout.backends import (
    CONNECTIONS,
    CannotRunError,
    backends,
    database_at,
    redis_client,
    sticky_client,
    utc_now,
)
from turnout.embedded import EmbeddedError
from turnout.health import WorkerHealth
from turnout.lane import Lane, LaneProtocol
from turnout.parts import (
    Base,
    RouterPart,
    chronicler_part,
    controller_part,
    herald_part,
    once,
    orphans_part,
    router_part,
)
from turnout.protocol import BoundedProtocol
from turnout.seat import Seat
from turnout.serving import Task, listen, supervise, url_of
from turnout.settings import Process, Settings
from turnout.signing_key import signing_key
from turnout.sums import metrics_of
from turnout.telemetry import RequestLog, request_ids
from turnout.tracing import Traces, tracing
from turnout.vitals import Vitals

WITH_ROUTER: Final[frozenset[Process]] = frozenset({"up", "serve"})
WITH_CONTROLLER: Final[frozenset[Process]] = frozenset({"up", "worker"})

A_WORKERS: Final = CONNECTIONS // 2
"""Connections of a worker to Postgres, at most: there are others, and they share the work."""

_SWITCH_SECONDS: Final = 0.0005
_YOUNG_OBJECTS: Final = 20_000
"""Objects that are made before the collector looks at them: about those of a batch of outcomes."""


async def run(
    settings: Settings,
    announce: Callable[[str], None],
    stop: asyncio.Event,
    process: Process = "up",
    seat: Seat | None = None,
) -> None:
    """Run the parts of Turnout that a process has, until `stop` is set.

    Args:
        announce: takes the lines that an operator should see: the address, the first admin key.
        seat: the place in a fleet that this process has, if it is one of several on a port.

    Raises:
        CannotRunError: if it cannot start, or something that it needs has ended.
    """
    registry = CollectorRegistry()
    patience = settings.length("sticky_timeout").total_seconds()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
    with listen(settings.host, settings.port) if seat is None else seat.listener as listener:
        try:
            async with (
                backends(settings) as behind,
                tracing(settings, process, registry) as traces,
                database_at(
                    behind.database_url,
                    CONNECTIONS if seat is None else A_WORKERS,
                    traces.connection_class(),
                ) as database,
                contextlib.aclosing(redis_client(behind.redis_url, traces.redis_class())) as redis,
                contextlib.aclosing(
                    sticky_client(behind.redis_url, patience, traces.redis_class())
                ) as sticky_redis,
                orphans_part(settings, database.pool, registry) as orphans,
                contextlib.AsyncExitStack() as stack,
            ):
                joined = asyncio.Event()
                base = Base(
                    settings,
                    database,
                    redis,
                    sticky_redis,
                    registry,
                    orphans,
                    announce,
                    joined,
                    signing_key(settings, process),
                    traces.tracer,
                )
                tasks: list[Task] = [partial(once, joined, orphans.run)]
                router: RouterPart | None = None
                if process in WITH_ROUTER:
                    router = await stack.enter_async_context(router_part(base))
                    tasks += router.tasks
                else:
                    await database.open()
                    joined.set()
                if process in WITH_CONTROLLER:
                    tasks.append(partial(once, joined, controller_part(base).run))
                    tasks.append(partial(once, joined, herald_part(base).run))
                    tasks.append(partial(once, joined, chronicler_part(base).run))
                if seat is None:
                    announce(f"Turnout serves on {url_of(listener)}")
                else:
                    tasks.append(partial(seat.tell, registry))
                _spare_the_event_loop()
                courier = Courier(settings.webhook_proxy, traces.tracer)
                stack.push_async_callback(courier.close)
                doors = _doors(base, router, seat, courier, traces)
                tasks += doors.tasks
                await supervise(
                    doors.app, listener, tasks, behind.died, stop, doors.protocol, doors.leave
                )
                # The doors are shut: what they acknowledged last goes to Postgres while it is
                # still there.
                if router is not None:
                    await router.finish()
        except EmbeddedError as error:
            raise CannotRunError(str(error)) from error


def _spare_the_event_loop() -> None:
    """Keep the garbage collector from what lives as long as the process, and from looking at every
    batch of records while it passes through: they hold no cycles. And have the threads that read
    and write files give the interpreter back soon: by default they may keep it for 5 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    sys.setswitchinterval(_SWITCH_SECONDS)


class _Doors(NamedTuple):
    """The app of a process, the protocol that stands before it, what has to run for them, and what
    ends the answers that would not end by themselves."""

    app: ASGIApp
    protocol: Callable[..., asyncio.Protocol]
    tasks: tuple[Task, ...] = ()
    leave: Callable[[], None] = lambda: None


def _doors(
    base: Base, router: RouterPart | None, seat: Seat | None, courier: Courier, traces: Traces
) -> _Doors:
    health = WorkerHealth(base.pool) if router is None else router.health
    requests = RequestLog(base.registry, request_ids(uuid4().hex[:16]))
    operation = Operation(
        health,
        metrics_of(base.registry) if seat is None else seat.metrics,
        requests,
        base.tracer,
    )
    vitals = Vitals(base.registry, base.pool, health, base.settings.data_path, time.monotonic)
    watches: tuple[Task, ...] = (vitals.beat, vitals.look)
    if router is None:
        return _Doors(create_operation_app(operation), BoundedProtocol, watches)
    keys = router.plane.refresher
    limiter = RateLimiter(base.settings.rate_limit, time.monotonic)
    gate = Gate(keys, utc_now, limiter)
    base.registry.register(UsesCollector(gate.uses))
    exchange = Exchange(
        base.redis,
        limiter,
        uuid4().hex,
        time.monotonic,
        lambda key_id: keys.find_key(key_id) is None,
    )
    keeper = UsesKeeper(base.pool, gate.uses, gate.used, utc_now)
    control = ControlPlane(base.pool, base.redis, router.database_time, secrets.token_bytes)
    renderer = Renderer(Assets())
    analysis = AnalysisPlane(
        base.pool, router.database_time, base.settings.length("lateness"), press_of(renderer)
    )
    planning = PlanningPlane(base.pool, router.database_time)
    live = Live(base.pool, router.database_time)
    base.registry.register(LiveCollector(live))
    app = create_app(
        Planes(
            control=control,
            webhooks=WebhookPlane(base.signing_key, courier),
            data=router.plane,
            local=LocalPlane(router.plane, FlagSets(), Epochs(base.pool), base.pool),
            analysis=analysis,
            planning=planning,
            pages=PagesPlane(
                control=control,
                analysis=analysis,
                planning=planning,
                gate=gate,
                renderer=renderer,
                live=live,
            ),
            operation=operation,
            gate=gate,
        )
    )
    streams = router.plane.streams

    def leave() -> None:
        streams.close()
        live.close()

    return _Doors(
        app,
        partial(LaneProtocol, Lane(router.plane, gate, requests, traces.exporting)),
        (
            *watches,
            exchange.run,
            partial(once, base.joined, keeper.run),
            partial(once, base.joined, live.run),
        ),
        leave,
    )
