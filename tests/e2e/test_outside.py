"""`turnout up` on a Postgres and a Redis that are somebody else's, and come and go."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import rmtree

import asyncpg

from tests.e2e.commands import checked, children_of, done, servers_of, until, up
from tests.e2e.traffic import QUICK, assign, expose_units, start_experiment, units_of
from turnout.embedded import postgres, valkey
from turnout.embedded.binaries import Binaries, find_binaries, server_account
from turnout.embedded.folder import Folder, forget_postmaster, make_sockets, prepare
from turnout.embedded.process import Child

# With hardly a moment without a query.
BUSY = ("--ship-every", "1ms", "--tick", "10ms", "--lateness", "100ms", "--snapshot-poll", "1ms")


class Outside:
    """A Postgres and a Valkey that come back under the same address."""

    def __init__(self, root: Path) -> None:
        """On a new folder."""
        root.mkdir()
        self.folder = Folder(root=root)
        self.account = server_account()
        self.binaries: Binaries = find_binaries(self.account)
        self.sockets = make_sockets(self.account)
        self.database_url = postgres.database_url(self.sockets)
        self.redis_url = valkey.redis_url(self.sockets)
        self.postgres: Child | None = None
        self.redis: Child | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The settings that name them."""
        return {"TURNOUT_DATABASE_URL": self.database_url, "TURNOUT_REDIS_URL": self.redis_url}

    async def start_postgres(self) -> None:
        """Start Postgres, making its cluster the first time."""
        where = (self.folder, self.binaries, self.account)
        if not self.folder.postgres.exists():
            await postgres.initialise(*where, durable=False)
        # Durable, for a crash would take what is committed otherwise.
        self.postgres = await postgres.start(*where, self.sockets, durable=True)
        await postgres.until_ready(self.postgres, self.folder, self.sockets)

    async def start_redis(self) -> None:
        """Start Valkey."""
        self.redis = await valkey.start(
            self.folder, self.binaries, self.account, self.sockets, durable=False
        )
        await valkey.until_ready(self.redis, self.sockets)

    async def kill_postgres(self) -> None:
        """`kill -9`; its own children end when they notice."""
        if self.postgres:
            await self.postgres.stop(0)
            until(lambda: "postgres" not in servers_of(self.folder.root).values(), "all has ended")
            forget_postmaster(self.folder)
            self.postgres = None

    async def kill_redis(self) -> None:
        """`kill -9`."""
        if self.redis:
            await self.redis.stop(0)
            self.redis = None


@asynccontextmanager
async def outside(root: Path) -> AsyncIterator[Outside]:
    """Both servers, running."""
    servers = Outside(root)
    prepare(servers.folder, servers.account, servers.binaries.major)
    try:
        await servers.start_postgres()
        await servers.start_redis()
        yield servers
    finally:
        await servers.kill_postgres()
        await servers.kill_redis()
        rmtree(servers.sockets)


async def outcomes_in(database_url: str) -> Counter[str]:
    """How often each unit's outcome is in Postgres."""
    connection = await asyncpg.connect(database_url)
    try:
        return Counter(row["unit"] for row in await connection.fetch("select unit from outcome"))
    finally:
        await connection.close()


def test_it_starts_no_server_of_its_own_and_needs_a_folder_for_its_journal_only(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    data_dir = tmp_path / "data"
    with up(data_dir, *QUICK, variables=variables) as service:
        start_experiment(service, service.admin_key)
        expose_units(service, service.admin_key, range(5))
        assert children_of(service.process.pid) == set()
        assert [path.name for path in data_dir.iterdir()] == ["journal"]
        until(lambda: units_of(service, service.admin_key) == 5, "the report counts all")
        assert service.stop() == 0


def test_it_starts_only_the_server_that_nobody_else_gives(
    tmp_path: Path, database_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url}
    data_dir = tmp_path / "data"
    with up(data_dir, *QUICK, variables=variables) as service:
        assert children_of(service.process.pid) == {"valkey-server"}
        assert not (data_dir / "postgres").exists()
        # Keys are made in the same database, while the folder is held.
        key = done(
            "keys", "create", "--role", "admin", "--data-dir", data_dir, variables=variables
        ).strip()
        with service.client(key) as client:
            until(lambda: client.get("/v1/keys").is_success, "the key works")


async def test_it_goes_on_without_redis(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        with up(tmp_path / "data", *QUICK, variables=servers.variables) as service:
            admin_key = service.admin_key
            start_experiment(service, admin_key)
            expose_units(service, admin_key, range(20))
            await servers.kill_redis()
            expose_units(service, admin_key, range(20, 40))
            # News still comes, by polling.
            start_experiment(service, admin_key, "second")
            expose_units(service, admin_key, range(20), "second")
            until(lambda: units_of(service, admin_key) == 40, "the report counts all")
            await servers.start_redis()
            start_experiment(service, admin_key, "third")
            assert service.stop() == 0
            assert service.strays == []


async def test_it_goes_on_without_postgres_and_loses_nothing(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        with up(tmp_path / "data", *QUICK, variables=servers.variables) as service:
            admin_key = service.admin_key
            start_experiment(service, admin_key)
            before = expose_units(service, admin_key, range(30))
            await servers.kill_postgres()

            assert expose_units(service, admin_key, range(60)).items() >= before.items()
            until(lambda: service.metric("turnout_shipping_failures_total") > 1, "shipping fails")
            assert service.metric("turnout_journal_bytes") > 0
            with service.client(admin_key) as client:
                refused = client.get("/v1/experiments/ranker/report")
                assert refused.status_code == 503
                assert refused.json()["type"] == "unavailable"
                assert client.get("/healthz").is_success
                assert checked(client.get("/readyz"))["ready"]
                assert assign(client, "unit-1").is_success

            await servers.start_postgres()
            until(lambda: units_of(service, admin_key) == 60, "the report counts all")
            assert await outcomes_in(servers.database_url) == {
                f"unit-{number}": 1 for number in range(0, 60, 3)
            }
            assert service.process.poll() is None
            assert service.stop() == 0
            assert service.strays == []


async def test_it_goes_on_when_its_connections_are_cut_at_any_moment(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    with up(tmp_path / "data", *BUSY, variables=variables) as service:
        admin_key = service.admin_key
        start_experiment(service, admin_key)
        connection = await asyncpg.connect(database_url)
        try:
            for number in range(40):
                expose_units(service, admin_key, range(number, number + 1))
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'turnout' and datname = current_database()"
                )
        finally:
            await connection.close()
        until(lambda: units_of(service, admin_key) == 40, "the report counts all")
        assert await outcomes_in(database_url) == {f"unit-{n}": 1 for n in range(0, 40, 3)}
        assert service.strays == []
        assert service.stop() == 0
