"""One server process: started so that it dies with us, waited for, stopped in bounded time."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from turnout.embedded import launch
from turnout.embedded.binaries import Account
from turnout.embedded.errors import EmbeddedError

LOG_BYTES = 10 * 1024 * 1024
TAIL_BYTES = 4096
TAIL_LINES = 3
POLL_SECONDS = 0.02
KILLED_SECONDS = 10.0


class Log:
    """A server's log: the server appends, we keep its size bounded."""

    def __init__(self, path: Path) -> None:
        """Lines from before this moment are not ours to quote."""
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def open(self) -> int:
        """A descriptor to hand to the server, which needs no right to the folder then."""
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tail(self) -> str:
        """The last lines of this run, as one line."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._start if self._start <= size else 0  # it was trimmed meanwhile
                file.seek(max(start, size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError as error:
            return f"(no log: {error.strerror})"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-TAIL_LINES:]) or "(nothing in the log)"

    def trim(self) -> None:
        """Start anew once the log is large, keeping the old one.

        Copied and emptied, not renamed: the server goes on writing to the file that it has open,
        at its end, wherever that is. Lines written in between are lost, which a log can bear.
        """
        if self.path.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
            os.truncate(self.path, 0)


class Child:
    """A running server."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, log: Log, farewell: signal.Signals
    ) -> None:
        """Made by `spawn`."""
        self.name = name
        self.log = log
        self._process = process
        self._farewell = farewell

    @property
    def pid(self) -> int:
        """The server's own pid, since the launcher becomes the server."""
        return self._process.pid

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        return await self._process.wait()

    async def obituary(self) -> str:
        """One line on how it ended."""
        status = self._process.returncode
        how = f"was killed by signal {-status}" if status and status < 0 else f"exited {status}"
        return f"{self.name} {how}: {await self.last_words()}"

    async def last_words(self) -> str:
        """The end of its log, and where the rest is."""
        return f"{await asyncio.to_thread(self.log.tail)} (log: {self.log.path})"

    async def until(self, ready: Callable[[], Awaitable[bool]], seconds: float) -> None:
        """Wait until it is ready; an error if it ends before, or takes too long."""
        try:
            async with asyncio.timeout(seconds):
                while not await ready():
                    if self._process.returncode is not None:
                        raise EmbeddedError(await self.obituary())
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise EmbeddedError(
                f"{self.name} was not ready after {seconds:.0f} s: {await self.last_words()}"
            ) from None

    async def finish(self, seconds: float) -> None:
        """Wait for a program that ends by itself; an error if it fails."""
        try:
            async with asyncio.timeout(seconds):
                status = await self.wait()
        except TimeoutError:
            raise EmbeddedError(f"{self.name} took more than {seconds:.0f} s") from None
        if status != 0:
            raise EmbeddedError(await self.obituary())

    async def stop(self, seconds: float) -> None:
        """Ask it to end; kill it if it has not within `seconds`, or if we are told to hurry."""
        try:
            self._signal(self._farewell)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.wait()
        finally:
            if self._process.returncode is None:
                self._signal(signal.SIGKILL)
                async with asyncio.timeout(KILLED_SECONDS):
                    await self.wait()

    def _signal(self, signum: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signum)


async def spawn(
    name: str,
    program: Sequence[str | Path],
    *,
    folder: Path,
    account: Account | None,
    farewell: signal.Signals,
    log: Path,
) -> Child:
    """Start a program in its folder, as its user, and have it end with `farewell` if we die.

    To be called in a thread that lives as long as the server is wanted: the kernel takes the end
    of the thread that forked for the death of the parent.
    """
    server_log = await asyncio.to_thread(Log, log)
    output = await asyncio.to_thread(server_log.open)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # neither the environment nor the user's packages
            "-S",
            launch.__file__,
            str(os.getpid()),
            str(int(farewell)),
            f"{account.uid}:{account.gid}" if account else "-",
            folder,
            *program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    finally:
        os.close(output)
    return Child(name, process, server_log, farewell)
