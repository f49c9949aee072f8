"""A way to a server that can be slow, or held up."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

CHUNK: Final = 4096


class Trap(NamedTuple):
    """Springs once a client has sent what is looked for, and some bytes more."""

    pattern: re.Pattern[bytes]
    bytes_more: int = 0

    def springs(self, said: bytes) -> bool:
        """Whether that was sent."""
        found = self.pattern.search(said)
        return found is not None and len(said) >= found.end() + self.bytes_more


class Link:
    """A connection of a client with the server. Nothing passes while its gate is shut."""

    def __init__(self, *, is_open: bool) -> None:
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()


class Proxy:
    """Passes bytes between clients and a server on another port, like a network.

    While it is held up nothing passes, in neither direction, and nobody is told: connections stay,
    as when a cable is cut. When it is let go, what was sent meanwhile arrives.
    """

    def __init__(self, server_port: int) -> None:
        """Use `proxy_to`."""
        self.port = 0
        self.delay = 0.0
        """Seconds by which each chunk of bytes is late."""
        self.held_up = asyncio.Event()
        self._server_port = server_port
        self._trap: Trap | None = None
        self._links: list[Link] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def set_trap(self, trap: Trap) -> None:
        """Hold everything up when it springs; it does so once."""
        self._trap = trap

    def hold_up(self) -> None:
        """Let nothing pass."""
        self.held_up.set()
        for link in self._links:
            link.gate.clear()

    def let_go(self) -> None:
        """Let everything pass."""
        self.held_up.clear()
        for link in self._links:
            link.gate.set()

    def forget(self) -> None:
        """Let new connections pass alone: those of before stay as they are, for ever."""
        self.hold_up()
        self._links.clear()
        self.held_up.clear()

    async def serve(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def close(self) -> None:
        """Cut all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(is_open=not self.held_up.is_set())
        self._links.append(link)
        task = asyncio.create_task(self._join(link, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await link.gate.wait()
            back, to = await asyncio.open_connection("127.0.0.1", self._server_port)
            with contextlib.closing(to):
                await asyncio.gather(
                    self._pass_up(link, reader, to), self._pass_down(link, back, writer)
                )

    async def _pass_up(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        said = b""
        while data := await reader.read(CHUNK):
            await self._send(link, data, writer)
            said = said + data if self._trap is not None else b""
            if self._trap is not None and self._trap.springs(said):
                self._trap = None
                self.hold_up()
        await self._end(link, writer)

    async def _pass_down(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._send(link, data, writer)
        await self._end(link, writer)

    async def _send(self, link: Link, data: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.delay)
        await link.gate.wait()
        writer.write(data)
        await writer.drain()

    async def _end(self, link: Link, writer: asyncio.StreamWriter) -> None:
        await link.gate.wait()
        writer.close()


@contextlib.asynccontextmanager
async def proxy_to(server_port: int) -> AsyncIterator[Proxy]:
    """A way to the server on this port."""
    proxy = Proxy(server_port)
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
