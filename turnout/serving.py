"""The web server in front of a process, and the watch over all that runs in it."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

import uvicorn
from litestar.types import ASGIApp

from turnout.backends import CannotRunError, line_of
from turnout.protocol import BoundedProtocol

DRAIN_SECONDS: Final = 10
BACKLOG: Final = 1024

Task: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Something that goes on until it is cancelled."""


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that listens on the address. It does so before anything else is started, for two
    processes can be bound to one port as long as neither listens.

    Args:
        shared: whether other sockets of this user may listen there, too, if they also say so. The
            kernel deals connections out to them.

    Raises:
        CannotRunError: if the port is in use or the address is none of ours.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter for what can be no name of a host
        raise CannotRunError(f"cannot listen on {host}:{port}: {line_of(error)}") from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a socket listens."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


async def supervise(
    app: ASGIApp,
    listener: socket.socket,
    background: Sequence[Task],
    died: Callable[[], Awaitable[str]] | None,
    stop: asyncio.Event,
    protocol: Callable[..., asyncio.Protocol] = BoundedProtocol,
    leave: Callable[[], None] = lambda: None,
) -> None:
    """Serve until `stop` or a death; then drain, and cancel and await every task.

    Args:
        leave: ends the answers that would not end by themselves; called when draining begins.

    Raises:
        CannotRunError: if a task has ended, or a server of our own (`died`).
    """
    server = _Server(_config(app, protocol))
    loop = asyncio.get_running_loop()
    stopping = loop.create_task(stop.wait(), name="stop")
    serving = loop.create_task(server.serve(sockets=[listener]), name="web server")
    tasks = [loop.create_task(task()) for task in background]
    obituary = loop.create_task(_wait_for(died)) if died is not None else None
    watched = [stopping, serving, *tasks, *([obituary] if obituary is not None else [])]
    try:
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        leave()
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


class _Server(uvicorn.Server):
    """uvicorn, but for signals: those the process handles, so that all tasks end in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield


def _config(app: Any, protocol: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        backlog=BACKLOG,
    )
