"""`turnout up` on a Postgres and a Redis that are somebody else's, and come and go."""

from pathlib import Path

import asyncpg

from tests.e2e.commands import checked, children_of, done, until, up
from tests.e2e.outside import outcomes_in, outside
from tests.e2e.traffic import QUICK, assign, expose_units, start_experiment, units_of
from turnout.signing_key import FILE

# With hardly a moment without a query.
BUSY = ("--ship-every", "1ms", "--tick", "10ms", "--lateness", "100ms", "--snapshot-poll", "1ms")


def test_it_starts_no_server_of_its_own_and_keeps_its_journal_its_snapshot_and_its_key_only(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    data_dir = tmp_path / "data"
    with up(data_dir, *QUICK, variables=variables) as service:
        start_experiment(service, service.admin_key)
        expose_units(service, service.admin_key, range(5))
        assert children_of(service.process.pid) == set()
        until((data_dir / "snapshot").exists, "the snapshot is on disk")
        assert {path.name for path in data_dir.iterdir()} == {"journals", "snapshot", FILE}
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
