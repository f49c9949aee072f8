"""A worker's place in a fleet: what its parent has given it, and how the two speak.

Each worker tells its own metrics at a Unix socket in the folder of the fleet; the parent tells the
sum of all at another one. Whoever connects is told, and needs to say nothing. The folder is for one
user alone.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from experiments.problems import ProblemError
from turnout.sums import Families, families_of

SUM_SECONDS: Final = 5.0
"""How long a worker waits for the sum: longer than the parent does for its workers."""


class Seat(msgspec.Struct, frozen=True):
    """What a worker has from its parent.

    `listener` is its socket on the port of all workers; `folder` is where they and the parent
    listen for each other; `number` is that of the worker; `ready` tells the parent that it serves.
    """

    listener: socket.socket
    folder: Path
    number: int
    ready: Callable[[], None]

    async def tell(self, registry: CollectorRegistry) -> None:
        """Tell the metrics of this worker to whoever asks, until cancelled. Only who can be asked
        is ready: the silence of another could not be told from its start."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):  # the parent did not wait for it
                writer.write(msgspec.msgpack.encode(await families_of(registry)))
                await writer.drain()
            writer.close()

        path = worker_socket(self.folder, self.number)
        path.unlink(missing_ok=True)  # of the one before, if that was killed
        server = await asyncio.start_unix_server(answer, path)
        self.ready()
        async with server:
            await server.serve_forever()

    async def metrics(self) -> Families:
        """The sum of all workers.

        Raises:
            ProblemError: `unavailable` if the parent does not answer. The metrics of this worker
                alone would look like a fall of all counters.
        """
        try:
            async with asyncio.timeout(SUM_SECONDS):
                reader, writer = await asyncio.open_unix_connection(parent_socket(self.folder))
                try:
                    told = await reader.read(-1)
                finally:
                    writer.close()
            return msgspec.msgpack.decode(told, type=Families)
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            detail = "the metrics of all workers cannot be had now"
            raise ProblemError("unavailable", detail) from error


def worker_socket(folder: Path, number: int) -> Path:
    """Where a worker tells its metrics."""
    return folder / f"worker-{number}"


def parent_socket(folder: Path) -> Path:
    """Where the sum is told."""
    return folder / "all"
