"""`turnout serve` and `turnout worker`: the parts of one Turnout in processes of their own."""

import signal
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.e2e.commands import PLAIN, Up, checked, journals_in, refusal, until, up
from tests.e2e.outside import outside
from tests.e2e.traffic import QUICK, expose_units, start_experiment, units_of, until_assigned
from turnout.settings import Process


async def announced(database_url: str) -> int:
    """How many journals the watermark waits for."""
    connection = await asyncpg.connect(database_url)
    try:
        number: int = await connection.fetchval("select count(*) from journal")
        return number
    finally:
        await connection.close()


def answer(service: Up, path: str) -> httpx.Response:
    """What a process answers to anybody."""
    return httpx.get(f"{service.url}{path}", timeout=30, verify=PLAIN)


async def test_two_routers_and_a_worker_are_one_turnout(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    data_dir = tmp_path / "data"  # of both routers: each has a journal of its own in it
    with (
        up(data_dir, *QUICK, variables=variables, command="serve", name="one") as one,
        up(data_dir, *QUICK, variables=variables, command="serve", name="two") as two,
        up(tmp_path / "none", *QUICK, variables=variables, command="worker") as worker,
    ):
        admin_key = one.admin_key
        assert admin_key
        assert not two.admin_key + worker.admin_key
        start_experiment(one, admin_key)
        expose_units(one, admin_key, range(30))
        until_assigned(two, admin_key)
        expose_units(two, admin_key, range(30, 60))
        for router in (one, two):
            until(lambda: units_of(router, admin_key) == 60, "the report counts all")  # noqa: B023
        until(lambda: worker.metric("turnout_leader") == 1, "the worker leads")
        for service in (one, two, worker):
            assert service.stop() == 0
            assert service.strays == []
    assert await announced(database_url) == 0
    assert journals_in(data_dir) == []
    assert not (tmp_path / "none").exists()


def test_a_router_leaves_folding_to_the_worker(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    with up(tmp_path / "data", *QUICK, variables=variables, command="serve") as router:
        assert "turnout_leader" not in answer(router, "/metrics").text


async def test_a_worker_answers_its_operator_and_nobody_else(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        variables = servers.variables
        with up(tmp_path / "data", *QUICK, variables=variables, command="worker") as worker:
            assert checked(answer(worker, "/healthz")) == {"status": "ok"}
            assert checked(answer(worker, "/readyz"))["ready"]
            assert worker.metric("turnout_orphan_journals") == 0
            for path in ("/v1/experiments", "/schema", "/nothing"):
                assert answer(worker, path).status_code == 404
            await servers.kill_postgres()
            until(lambda: answer(worker, "/readyz").status_code == 503, "it is not ready")
            (check,) = answer(worker, "/readyz").json()["checks"]
            assert (check["name"], check["ok"]) == ("postgres", False)
            assert checked(answer(worker, "/healthz")) == {"status": "ok"}
            await servers.start_postgres()
            until(lambda: answer(worker, "/readyz").is_success, "it is ready again")
            assert worker.stop(signal.SIGINT) == 0
            assert worker.strays == []


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_part_needs_servers_that_others_can_reach(
    command: Process, data_dir: Path, database_url: str
) -> None:
    line = refusal(command, "--data-dir", data_dir)
    assert f"TURNOUT_DATABASE_URL: {command} needs it; `turnout up` brings" in line
    assert f"TURNOUT_REDIS_URL: {command} needs it" in line
    line = refusal(command, "--data-dir", data_dir, "--database-url", database_url)
    assert line.startswith(f"wrong settings: TURNOUT_REDIS_URL: {command} needs it")
    assert not data_dir.exists()
