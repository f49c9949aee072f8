"""A router on its own feet: with nobody behind it, it serves, also after its own restart."""

import asyncio
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg
import httpx

from tests.e2e.commands import PATIENCE, PLAIN, Up, checked, launched, refusal, until, up
from tests.e2e.crash.audit import figures
from tests.e2e.crash.figures import FIGURES, RecordProperty
from tests.e2e.crash.fleet import Fleet, Layout, Member, running_fleet, running_servers
from tests.e2e.crash.load import DEFINITION, EXPERIMENT, Ledger
from tests.e2e.crash.programs import Turnout
from tests.e2e.crash.programs import until as until_so
from tests.e2e.outside import Outside, outcomes_in, outside
from tests.e2e.traffic import QUICK, assign, expose_units, start_experiment

SEED: Final = "alone"
UNITS: Final = [f"asked-{number}" for number in range(50)]
SERVING: Final = Layout([Member("serve", "data")], [Member("worker", "other")])


async def test_with_everything_gone_a_router_serves_through_its_own_restart(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    ledger = Ledger()
    async with (
        running_servers(tmp_path) as servers,
        running_fleet(tmp_path, SERVING, servers) as fleet,
    ):
        (router,) = fleet.routers
        async with fleet.load(ledger, SEED):
            await ledger.grow(300, exposures=15)
            await asyncio.gather(servers.postgres.kill(), servers.valkey.kill())
            await ledger.grow(300, exposures=15)
            before = await variants(fleet, router)
            await until_so(partial(saved, router), "the snapshot is on disk")

            assert await router.kill()
            await router.start()
            await router.until_ready()
            assert await variants(fleet, router) == before
            assert await degraded(router) == {"snapshot", "postgres", "redis"}
            status, answer = await fleet.post(router, "/v1/experiments", DEFINITION)
            assert (status, answer["type"]) == (503, "unavailable")
            await ledger.grow(300, exposures=15)
            assert await router.metric("turnout_journal_bytes") > 0

            await servers.postgres.start()
            await servers.valkey.start()
            changes = len(ledger.changes)
            epochs = {exposure.epoch for exposure in ledger.exposed}

            async def followed() -> bool:
                new = {exposure.epoch for exposure in ledger.exposed} - epochs
                return len(ledger.changes) >= changes + 2 and bool(new)

            await until_so(followed, "changes are made, and the router follows them")

            async def whole() -> bool:
                return not await degraded(router)

            await until_so(whole, "nothing is degraded any more")
        findings = await fleet.settle(ledger)
        record_property(FIGURES, figures(ledger, findings))
        assert findings == {}
        assert ledger.unrecorded == 0


async def variants(fleet: Fleet, router: Turnout) -> Sequence[tuple[str, int]]:
    """The variant and the epoch of some units, without exposing them."""
    found = []
    for unit in UNITS:
        body = {"experiment": EXPERIMENT, "unit": unit, "expose": False}
        status, answer = await fleet.post(router, "/v1/assign", body)
        assert status == 200, answer
        found.append((answer["variant"], answer["epoch"]))
    return found


async def checks(router: Turnout) -> dict[str, Any]:
    """What a router says of itself, by name. It has to say that requests may come."""
    async with aiohttp.request("GET", f"{router.url}/readyz") as answer:
        assert answer.status == 200
        state = await answer.json()
    assert state["degraded"] == (not all(check["ok"] for check in state["checks"]))
    return {check["name"]: check for check in state["checks"]}


async def degraded(router: Turnout) -> set[str]:
    """The names of what is not as it should be."""
    return {name for name, check in (await checks(router)).items() if not check["ok"]}


async def saved(router: Turnout) -> bool:
    """Whether all that it knows is on disk."""
    detail: str = (await checks(router))["snapshot on disk"]["detail"]
    return detail == "up to date"


def check_of(service: Up, name: str) -> Any:
    """What a router that can serve says of one thing."""
    state = checked(httpx.get(f"{service.url}/readyz", timeout=30, verify=PLAIN))
    (check,) = [check for check in state["checks"] if check["name"] == name]
    return check


def serve_and_stop(data_dir: Path, servers: Outside) -> str:
    """Serve an experiment once, so that its snapshot is on disk; the admin key."""
    with up(data_dir, *QUICK, variables=servers.variables, command="serve", name="first") as first:
        key = first.admin_key
        start_experiment(first, key)
        assert first.stop() == 0
    return key


async def test_the_snapshot_on_disk_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        serve_and_stop(tmp_path / "data", servers)
    folder = tmp_path / "data" / "snapshot"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_without_a_snapshot_on_disk_a_router_does_not_start_alone(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        serve_and_stop(tmp_path / "data", servers)
        await servers.kill_postgres()
        variables = servers.variables
        for name in ("none", "damaged"):
            data_dir = tmp_path / name
            if name == "damaged":
                kept = data_dir / "snapshot" / "publications"
                kept.parent.mkdir(parents=True)
                kept.write_bytes(
                    (tmp_path / "data" / "snapshot" / "publications").read_bytes()[:-1]
                )
            with launched(
                data_dir, *QUICK, variables=variables, command="serve", name="again"
            ) as service:
                assert service.process.wait(PATIENCE) == 2
                assert service.logged.splitlines()[-1].startswith("turnout: cannot reach Postgres")
                assert service.printed == []
        assert not kept.exists()
        assert kept.with_name("set-aside").exists()


async def test_a_database_of_another_version_is_left_alone_until_it_is_ours(
    tmp_path: Path,
) -> None:
    async with outside(tmp_path / "outside") as servers:
        key = serve_and_stop(tmp_path / "data", servers)
        await set_foreign_migration(servers, present=True)
        line = refusal(
            "serve", "--port", "0", "--data-dir", tmp_path / "data", variables=servers.variables
        )
        assert "the database is ahead" in line
        await servers.kill_postgres()
        with up(tmp_path / "data", *QUICK, variables=servers.variables, command="serve") as router:
            expose_units(router, key, range(6))
            await servers.start_postgres()
            until(
                lambda: "ahead" in check_of(router, "postgres")["detail"], "it says what is wrong"
            )
            with router.client(key) as client:
                assert client.get("/v1/experiments").status_code == 503
                assert checked(assign(client, "unit-1"))["recorded"]
            assert await outcomes_in(servers.database_url) == {}
            await set_foreign_migration(servers, present=False)
            until(lambda: check_of(router, "postgres")["ok"], "it joins")
            with router.client(key) as client:
                assert client.get("/v1/experiments").is_success
            assert router.stop() == 0
            assert router.strays == []
        assert await outcomes_in(servers.database_url) == {"unit-0": 1, "unit-3": 1}


async def set_foreign_migration(servers: Outside, *, present: bool) -> None:
    """Have the database say that a later version of Turnout has migrated it, or not."""
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute("delete from migration where number = 9000")
        if present:
            await connection.execute(
                "insert into migration (number, name, checksum, applied_at) "
                "values (9000, '9000_later.sql', '', now())"
            )
    finally:
        await connection.close()


async def test_a_router_that_is_not_let_in_serves_from_disk_and_says_so(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        key = serve_and_stop(tmp_path / "data", servers)
        url = urlunsplit(urlsplit(servers.database_url)._replace(path="/missing"))
        variables = servers.variables | {"TURNOUT_DATABASE_URL": url}
        with up(tmp_path / "data", *QUICK, variables=variables, command="serve") as router:
            with router.client(key) as client:
                assert checked(assign(client, "unit-1"))["recorded"]
            until(lambda: "let us in" in check_of(router, "postgres")["detail"], "it says so")
            assert "from disk" in check_of(router, "snapshot")["detail"]
            assert 'database "missing" does not exist' in router.logged.replace("\\", "")
            assert router.stop() == 0
