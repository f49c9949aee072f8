"""Processes that can be killed and started again, on the same folder and the same port."""

import asyncio
import os
import random
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import aiohttp
import asyncpg
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.e2e.commands import TURNOUT
from turnout.embedded import postgres
from turnout.embedded.binaries import find_binaries, server_account
from turnout.embedded.folder import Folder, forget_postmaster, orphans, prepare
from turnout.embedded.process import Child, spawn

PATIENCE: Final = 120.0  # a bound, not a wait: machines that run tests may be busy
RESTART_SECONDS: Final = 0.2
EPHEMERAL: Final = 32_768
"""From here on the kernel gives ports to outgoing connections, also while a server is down."""


async def until(
    condition: Callable[[], Awaitable[bool]], what: str, seconds: float = PATIENCE
) -> None:
    """Poll until the condition holds; a failure names what never came."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - other processes set no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never happened in {seconds:.0f} s: {what}") from None


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection is given meanwhile."""
    while True:
        port = random.randrange(10_000, EPHEMERAL)  # noqa: S311 - it need not be secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Program(ABC):
    """A process that is wanted: if it ends by itself it is started again, as by a supervisor.

    `deaths` has a line for each time that it ended by itself.
    """

    farewell: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.deaths: list[str] = []
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None

    @abstractmethod
    async def spawn(self) -> Child:
        """Start the process; it need not be ready."""

    @abstractmethod
    async def is_ready(self) -> bool:
        """Whether it does its work."""

    @property
    def pid(self) -> int:
        """The process."""
        assert self._child is not None, f"{self.name} does not run"
        return self._child.pid

    async def start(self) -> None:
        """Start it, and keep it running."""
        self._child = await self.spawn()
        self._keeper = asyncio.create_task(self._keep(self._child), name=self.name)

    async def until_ready(self) -> None:
        """Wait until it does its work."""
        await until(self.is_ready, f"{self.name} is ready (log: {self.log})")

    async def end(self, signum: signal.Signals) -> int | None:
        """Send it a signal, and wait until it has ended; its exit status, None if it did not run.
        Nobody starts it again."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._child is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, signum)
        async with asyncio.timeout(PATIENCE):
            status = await self._child.wait()
        self._child = None
        return status

    @property
    def wanted(self) -> bool:
        """Whether it should run."""
        return self._keeper is not None

    async def kill(self) -> bool:
        """`kill -9`; whether it ran."""
        return await self.end(signal.SIGKILL) is not None

    async def stop(self) -> int | None:
        """Ask it to end; its exit status."""
        return await self.end(self.farewell)

    async def _keep(self, child: Child) -> None:
        while True:
            await child.wait()
            self._child = None
            self.deaths.append(await child.obituary())
            await asyncio.sleep(RESTART_SECONDS)
            self._child = child = await self.spawn()


class Postgres(Program):
    """A Postgres on a cluster of its own.

    It does not wait for the disk: what a killed process has written stays with the system.
    """

    farewell = signal.SIGINT

    def __init__(self, folder: Path) -> None:
        super().__init__("Postgres", folder / "logs" / "postgres.log")
        self.port = free_port()
        self.url = self.url_at(self.port)
        self._folder = Folder(root=folder)
        self._account = server_account()
        self._binaries = find_binaries(self._account)

    @staticmethod
    def url_at(port: int) -> str:
        """The address of its database, if it is to be found at this port."""
        return f"postgresql://{postgres.USER}@127.0.0.1:{port}/postgres"

    async def initialise(self) -> None:
        """Make the cluster."""
        self._folder.root.mkdir()
        prepare(self._folder, self._account, self._binaries.major)
        await postgres.initialise(self._folder, self._binaries, self._account, durable=False)

    async def spawn(self) -> Child:
        """Start it, once no process of the last one is left."""

        async def nobody_left() -> bool:
            return "postgres" not in orphans(self._folder).values()

        await until(nobody_left, "the processes of the last Postgres have ended")
        forget_postmaster(self._folder)
        settings = {
            **postgres.SETTINGS,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
        }
        return await spawn(
            self.name,
            [
                self._binaries.postgres / "postgres",
                *("-D", postgres.HERE),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            folder=self._folder.postgres,
            account=self._account,
            farewell=self.farewell,
            log=self.log,
        )

    async def is_ready(self) -> bool:
        """Whether it takes connections."""
        try:
            connection = await self.connect()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    async def connect(self) -> asyncpg.Connection:
        """A connection of our own."""
        return await asyncpg.connect(self.url, timeout=10)

    async def stop_at_once(self) -> bool:
        """`pg_ctl stop -m immediate`: it ends as in a crash; whether it ran."""
        return await self.end(signal.SIGQUIT) is not None

    def kill_a_child(self, generator: random.Random) -> bool:
        """`kill -9` one of its processes: it cuts all connections, and recovers by itself. Whether
        there was one."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        if not children:
            return False
        os.kill(int(generator.choice(children)), signal.SIGKILL)
        return True

    async def cut_connections(self) -> int:
        """End all connections but the one that does it; how many there were."""
        connection = await self.connect()
        try:
            cut: int = await connection.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where backend_type = 'client backend' and pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()
        return cut


class Valkey(Program):
    """A Valkey on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__("Valkey", folder / "logs" / "redis.log")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = Folder(root=folder)
        self._account = server_account()
        self._binary = find_binaries(self._account).valkey

    async def spawn(self) -> Child:
        """Start it."""
        settings = {"bind": "127.0.0.1", "port": str(self.port), "appendonly": "yes", "save": ""}
        return await spawn(
            self.name,
            [
                self._binary,
                *(word for name, value in settings.items() for word in (f"--{name}", value)),
            ],
            folder=self._folder.redis,
            account=self._account,
            farewell=self.farewell,
            log=self.log,
        )

    async def is_ready(self) -> bool:
        """Whether it answers PING."""
        async with Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            with suppress(RedisError, OSError):
                await client.ping()
                return True
        return False


class Turnout(Program):
    """A command of Turnout that runs until it is stopped: `up`, or a part of it.

    `within` is a command that runs it, such as one that gives it a disk of its own; `workers` are
    those that share its port.
    """

    def __init__(
        self,
        name: str,
        command: str,
        data_dir: Path,
        flags: Sequence[str],
        within: Sequence[str],
        workers: int = 1,
    ) -> None:
        super().__init__(f"turnout {command}", data_dir.with_name(f"{name}.log"))
        self.data_dir = data_dir
        self.workers = workers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._program = [
            *within,
            *(str(TURNOUT), command, "--port", str(self.port), "--data-dir", str(data_dir)),
            *flags,
            *(("--workers", str(workers)) if workers > 1 else ()),
        ]

    async def spawn(self) -> Child:
        """Start it."""
        return await spawn(
            self.name,
            self._program,
            folder=self.data_dir.parent,
            account=None,
            farewell=self.farewell,
            log=self.log,
        )

    async def is_ready(self) -> bool:
        """Whether requests may come."""
        try:
            async with aiohttp.request("GET", f"{self.url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def metric(self, name: str) -> float:
        """A metric without labels."""
        async with aiohttp.request("GET", f"{self.url}/metrics") as answer:
            text = await answer.text()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return next(sample.value for sample in samples if sample.name == name)

    @property
    def defects(self) -> list[str]:
        """What it did not foresee: ends that it gave no reason for, lines with a traceback."""
        ends = [death for death in self.deaths if " exited 2: " not in death]
        return ends + [line for line in self.log.read_text().splitlines() if _is_defect(line)]


def _is_defect(line: str) -> bool:
    if not line.startswith("{"):
        return not line.startswith(("turnout: ", "Turnout serves on ", "Admin key of "))
    # asyncpg forgets a future where a connection is lost in the middle of a COPY.
    return "exception" in msgspec.json.decode(line) and "ConnectionDoesNotExistError" not in line
