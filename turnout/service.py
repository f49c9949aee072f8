"""Assembles a running Turnout: servers, pools, journal, tasks, and the web server in front."""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final
from uuid import uuid4

import uvicorn
from prometheus_client import CollectorRegistry, disable_created_metrics

from analysis.api import AnalysisPlane
from analysis.controller import Controller
from analysis.controller import Pace as ControllerPace
from analysis.telemetry import AnalysisMetrics
from experiments import store
from experiments.keys import new_key
from experiments.writes import ControlPlane
from router.api import DataPlane
from router.journal import Journal, JournalError, Limits
from router.metrics import JournalCollector, RouterMetrics
from router.recording import Recorder
from router.refresher import Refresher
from router.shipper import Pace as ShipperPace
from router.shipper import Shipper
from turnout.app import Planes, create_app
from turnout.backends import (
    Backends,
    CannotRunError,
    backends,
    connected,
    line_of,
    postgres_needed,
    redis_client,
    utc_now,
)
from turnout.embedded import EmbeddedError
from turnout.health import Readiness
from turnout.protocol import BoundedProtocol
from turnout.settings import Settings

DRAIN_SECONDS: Final = 10
BACKLOG: Final = 1024
logger = logging.getLogger(__name__)


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


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. It does so before anything else is started, for two
    processes can be bound to one port as long as neither listens.

    Raises:
        CannotRunError: if the port is in use or the address is none of ours.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter for what can be no name of a host
        raise CannotRunError(f"cannot listen on {host}:{port}: {line_of(error)}") from error
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """uvicorn, but for signals: those the process handles, so that all tasks end in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield


async def run(settings: Settings, announce: Callable[[str], None], stop: asyncio.Event) -> None:
    """Run Turnout, all in one process, until `stop` is set.

    Args:
        announce: takes the lines that an operator should see: the address, the first admin key.

    Raises:
        CannotRunError: if it cannot start, or something that it needs has ended.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
    with listen(settings.host, settings.port) as listener:
        try:
            async with backends(settings) as behind, connected(behind.database_url) as pool:
                await _serve(settings, behind, pool, listener, announce, stop)
        except EmbeddedError as error:
            raise CannotRunError(str(error)) from error


async def _serve(
    settings: Settings,
    behind: Backends,
    pool: store.Pool,
    listener: socket.socket,
    announce: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    try:
        journal = await Journal.open(
            settings.data_path / "journal",
            clock=utc_now,
            durability=settings.durability,
            limits=Limits(unshipped_bytes=settings.journal_limit_mib * 1024 * 1024),
        )
    except (JournalError, OSError) as error:
        raise CannotRunError(f"cannot open the journal: {line_of(error)}") from error
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(journal.close)
        redis = redis_client(behind.redis_url)
        stack.push_async_callback(redis.aclose)
        registry = CollectorRegistry()
        refresher = Refresher(
            pool, redis, utc_now, settings.length("snapshot_poll").total_seconds()
        )
        with postgres_needed():
            # Nothing that can fail stands between the commit of the first key and its only showing.
            admin_key = await bootstrap(pool, settings.project)
            if admin_key is not None:
                announce(f"Admin key of project {settings.project} (shown this once): {admin_key}")
            await refresher.refresh()
        shipper = Shipper(
            pool,
            journal,
            utc_now,
            random.Random(),  # noqa: S311 - jitter, not secrets
            ShipperPace(interval=settings.length("ship_every").total_seconds()),
        )
        controller = Controller(
            pool,
            redis,
            utc_now,
            f"{socket.gethostname()}:{os.getpid()}:{uuid4()}",
            ControllerPace(settings.length("tick"), settings.length("lateness")),
            AnalysisMetrics(registry),
        )
        metrics = RouterMetrics(registry)
        registry.register(JournalCollector(journal, shipper, utc_now))
        app = create_app(
            Planes(
                control=ControlPlane(pool, redis, utc_now, secrets.token_bytes),
                data=DataPlane(refresher, Recorder(journal, metrics), metrics, utc_now),
                analysis=AnalysisPlane(pool),
                readiness=Readiness(refresher, journal, utc_now),
                registry=registry,
                new_request_id=lambda: uuid4().hex,
            )
        )
        server = _web_server(app)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        announce(f"Turnout serves on http://{shown}:{port}")
        background = [refresher.run(), shipper.run(), controller.run()]
        await _supervise(server, listener, background, behind.died, stop)
        # The doors are shut: what they acknowledged last goes to Postgres while it is still there.
        with contextlib.suppress(OSError, TimeoutError, JournalError, *store.PostgresError):
            await asyncio.wait_for(shipper.finish(), timeout=DRAIN_SECONDS)


def _web_server(app: Any) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            backlog=BACKLOG,
        )
    )


async def _supervise(
    server: Server,
    listener: socket.socket,
    background: list[Coroutine[Any, Any, None]],
    died: Callable[[], Awaitable[str]] | None,
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` or a death; then drain, and cancel and await every task."""
    loop = asyncio.get_running_loop()
    stopping = loop.create_task(stop.wait(), name="stop")
    serving = loop.create_task(server.serve(sockets=[listener]), name="web server")
    tasks = [loop.create_task(coroutine) for coroutine in background]
    obituary = loop.create_task(_wait_for(died)) if died is not None else None
    watched = [stopping, serving, *tasks, *([obituary] if obituary is not None else [])]
    try:
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        for task in done - {stopping, serving}:
            raise CannotRunError(
                task.result() if task is obituary else f"a task ended: {task.exception()!r}"
            )
    finally:
        for task in watched:
            task.cancel()
        await asyncio.gather(*watched, return_exceptions=True)


async def _wait_for(died: Callable[[], Awaitable[str]]) -> str:
    return await died()
