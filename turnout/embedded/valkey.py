"""Valkey, our Redis: its command line and its signs of life."""

import signal
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004

from turnout.embedded.binaries import Account, Binaries
from turnout.embedded.folder import Folder
from turnout.embedded.process import Child, spawn

START_SECONDS = 120.0  # it reads its whole file first


def socket(sockets: Path) -> Path:
    """Where it listens."""
    return sockets / "redis.sock"


def redis_url(sockets: Path) -> str:
    """The address, as redis-py reads it."""
    return f"unix://{socket(sockets)}"


async def start(
    folder: Folder, binaries: Binaries, account: Account | None, sockets: Path, *, durable: bool
) -> Child:
    """Start the server; at SIGTERM it writes what it has and ends."""
    settings = {
        "port": "0",
        "unixsocket": str(socket(sockets)),
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "everysec" if durable else "no",
        "save": "",  # the append-only file is all that is needed
    }
    return await spawn(
        "Valkey",
        [
            binaries.valkey,
            *(word for name, value in settings.items() for word in (f"--{name}", value)),
        ],
        folder=folder.redis,
        account=account,
        farewell=signal.SIGTERM,
        log=folder.logs / "redis.log",
    )


async def until_ready(server: Child, sockets: Path) -> None:
    """Wait until it answers PING."""
    # Without retries of its own: the loop that asks is the retry, and sees the server die.
    async with Redis(
        unix_socket_path=str(socket(sockets)),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=5.0,
    ) as client:

        async def ready() -> bool:
            try:
                await client.ping()
            except (BusyLoadingError, ConnectionError, TimeoutError):
                return False
            return True

        await server.until(ready, START_SECONDS)
