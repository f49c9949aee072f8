"""A whole Turnout of one or several processes, with a Postgres and a Redis of its own."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import asyncpg
import msgspec

from router.orphans import journals_of
from tests.e2e.commands import done, servers_of, worker_of
from tests.e2e.crash.audit import Findings, audit, without_empty
from tests.e2e.crash.load import DEFINITION, EXPERIMENT, Ledger, Load
from tests.e2e.crash.programs import Postgres, Program, Turnout, Valkey, until
from turnout.embedded import running

QUICK: Final = (
    *("--ship-every", "50ms", "--tick", "20ms", "--lateness", "100ms"),
    *("--snapshot-poll", "500ms"),
)
_LEFT_TO_FOLD: Final = """
    select exists (select from segment where folded_at is null)
        or exists (select from run_metric where covered is not null)
"""


class Member(NamedTuple):
    """A process of Turnout: its command, the folder that it keeps its data in, and how many workers
    share its port."""

    command: str
    folder: str
    workers: int = 1


class Layout(NamedTuple):
    """The processes of a Turnout."""

    routers: Sequence[Member]
    workers: Sequence[Member] = ()


PARTS: Final = Layout(
    routers=[Member("serve", "data"), Member("serve", "data")], workers=[Member("worker", "data")]
)
"""Two routers and a worker on one data folder, where each ships what a dead one has left."""
TWO_WORKERS: Final = PARTS._replace(workers=[Member("worker", "data"), Member("worker", "other")])
"""The same with a second worker, on a disk of its own."""
ALL_IN_ONE: Final = Layout(routers=[Member("up", "data"), Member("up", "other")])
"""Two processes on disks of their own, each of which does everything."""


class Fleet:
    """The processes of a Turnout, those whose servers it uses, and a key that opens every door."""

    def __init__(
        self,
        servers: Sequence[Program],
        routers: Sequence[Turnout],
        workers: Sequence[Turnout],
        database_url: Callable[[], str],
    ) -> None:
        """`database_url` gives the address of the database while that runs."""
        self.servers = servers
        self.routers = routers
        self.workers = workers
        self.key = ""
        self._database_url = database_url

    @property
    def turnouts(self) -> Sequence[Turnout]:
        """The processes of Turnout."""
        return (*self.routers, *self.workers)

    @property
    def programs(self) -> Sequence[Program]:
        """All processes, in the order in which they need each other."""
        return (*self.servers, *self.turnouts)

    def load(self, ledger: Ledger, seed: str) -> Load:
        """Clients of all routers."""
        return Load([router.url for router in self.routers], self.key, seed, ledger)

    async def begin(self) -> None:
        """Define and start the experiment, and wait until every router assigns its units."""
        probe = {"experiment": EXPERIMENT, "unit": "nobody", "expose": False}
        await self._until_all_answer(404, probe, "knows the key")
        for path, body in (
            ("/v1/experiments", DEFINITION),
            (f"/v1/experiments/{EXPERIMENT}/start", {"reason": "to test"}),
        ):
            status, answer = await self.post(self.routers[0], path, body)
            assert 200 <= status < 300, answer
        await self._until_all_answer(200, probe, "assigns units")

    async def _until_all_answer(self, status: int, probe: Any, what: str) -> None:
        """Wait until every worker of every router answers an assignment so. Each request has a
        connection of its own, for which the kernel picks a worker."""
        for router in self.routers:
            answered: set[str] = set()

            async def all_answered(router: Turnout = router, answered: set[str] = answered) -> bool:
                async with self._asked(router, "/v1/assign", probe) as answer:
                    if answer.status == status:
                        answered.add(worker_of(answer.headers))
                return len(answered) >= router.workers

            await until(all_answered, f"every worker of {router.name} {what}")

    async def post(self, router: Turnout, path: str, body: Any) -> tuple[int, Any]:
        """Post something to a router; status and body of the answer."""
        async with self._asked(router, path, body) as answer:
            return answer.status, msgspec.json.decode(await answer.read())

    @contextlib.asynccontextmanager
    async def _asked(
        self, router: Turnout, path: str, body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Authorization": f"Bearer {self.key}"}
        data = msgspec.json.encode(body)
        async with aiohttp.request("POST", router.url + path, data=data, headers=headers) as answer:
            yield answer

    async def until_ready(self) -> None:
        """Wait until all processes do their work."""
        for program in self.programs:
            await program.until_ready()

    async def until_folded(self) -> None:
        """Wait until Postgres has all that the routers have, and all of it is in the moments."""

        async def shipped() -> bool:
            left = [await router.metric("turnout_journal_bytes") for router in self.routers]
            return not any(left) and not self._left_on_disk()

        await until(shipped, "all is shipped")
        async with self.connected() as connection:

            async def folded() -> bool:
                return not await connection.fetchval(_LEFT_TO_FOLD)

            await until(folded, "all is folded")

    def _left_on_disk(self) -> list[Path]:
        """Segments that Postgres lacks, be they of the living or of the dead."""
        left = []
        for path in self._files(".segment"):
            with contextlib.suppress(FileNotFoundError):  # shipped meanwhile
                if path.stat().st_size:
                    left.append(path)
        return left

    def _files(self, suffix: str) -> Iterator[Path]:
        for data_dir in {turnout.data_dir for turnout in self.turnouts}:
            for folder, _, names in os.walk(journals_of(data_dir)):  # folders may go meanwhile
                yield from (Path(folder, name) for name in names if name.endswith(suffix))

    async def settle(self, ledger: Ledger) -> Findings:
        """Let all come to rest, and see what does not fit; then end every process in order."""
        await self.until_ready()
        await self.until_folded()
        async with (
            self.connected() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            findings = await audit(connection, ledger)
        ends = [await turnout.stop() for turnout in self.turnouts]
        return findings | without_empty(
            {
                "processes that did not end in order": [end for end in ends if end != 0],
                "damaged bytes of journals": list(self._files(".damaged")),
                "defects": [defect for turnout in self.turnouts for defect in turnout.defects],
            }
        )

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of our own to the database."""
        connection = await asyncpg.connect(self._database_url())
        try:
            yield connection
        finally:
            await connection.close()


class Servers(NamedTuple):
    """What a fleet uses and does not run itself."""

    postgres: Postgres
    valkey: Valkey


@contextlib.asynccontextmanager
async def running_servers(folder: Path) -> AsyncIterator[Servers]:
    """A Postgres and a Redis for a fleet. They have ended afterwards."""
    servers = Servers(Postgres(folder / "servers"), Valkey(folder / "servers"))
    try:
        await servers.postgres.initialise()
        for server in servers:
            await server.start()
            await server.until_ready()
        yield servers
    finally:
        await asyncio.gather(*(server.kill() for server in servers))


@contextlib.asynccontextmanager
async def running_fleet(
    folder: Path,
    layout: Layout,
    servers: Servers,
    *,
    postgres_port: int | None = None,
    within: Callable[[Path], Sequence[str]] = lambda _: (),
) -> AsyncIterator[Fleet]:
    """A fleet that is ready, with the experiment running. It has ended afterwards.

    Args:
        postgres_port: where it finds Postgres, if not where that is.
        within: a command that runs the processes on this data folder.
    """
    postgres, valkey = servers
    database_url = postgres.url_at(postgres.port if postgres_port is None else postgres_port)
    where = ("--database-url", database_url, "--redis-url", valkey.url)

    def turnouts(role: str, members: Sequence[Member]) -> list[Turnout]:
        return [
            Turnout(
                f"{role}-{number}",
                member.command,
                folder / member.folder,
                (*where, *QUICK),
                within(folder / member.folder),
                member.workers,
            )
            for number, member in enumerate(members)
        ]

    routers, workers = turnouts("router", layout.routers), turnouts("worker", layout.workers)
    fleet = Fleet(servers, routers, workers, lambda: postgres.url)
    try:
        await _begin(fleet, where)
        yield fleet
    finally:
        await asyncio.gather(*(turnout.kill() for turnout in fleet.turnouts))


@contextlib.asynccontextmanager
async def embedded_fleet(folder: Path) -> AsyncIterator[Fleet]:
    """A `turnout up` with servers of its own. All of it has ended afterwards."""
    up = Turnout("up", "up", folder / "data", QUICK, within=())

    def database_url() -> str:
        servers = running(up.data_dir)
        assert servers is not None
        return servers.database_url

    async def servers_have_ended() -> bool:
        return not servers_of(up.data_dir)

    fleet = Fleet((), [up], [], database_url)
    try:
        await _begin(fleet, ("--data-dir", str(up.data_dir)))
        yield fleet
    finally:
        await up.kill()
        await until(servers_have_ended, "its servers have ended")


async def _begin(fleet: Fleet, where: Sequence[str]) -> None:
    for turnout in fleet.turnouts:
        await turnout.start()
    for turnout in fleet.turnouts:

        async def ready(turnout: Turnout = turnout) -> bool:
            assert not turnout.deaths, turnout.deaths
            return await turnout.is_ready()

        await until(ready, f"{turnout.name} is ready")
    key = await asyncio.to_thread(done, "keys", "create", "--role", "admin", *where)
    fleet.key = key.strip()
    await fleet.begin()
