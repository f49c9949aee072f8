"""A backup that is taken while Turnout serves is restored elsewhere, and is the same Turnout."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.e2e.commands import done, refusal, turnout
from tests.running import Running, definition, eventually, readings_of, running
from turnout.backends import CannotRunError
from turnout.backup import Tools, back_up, fitting, restore
from turnout.embedded import LiveServers
from turnout.settings import Settings
from turnout.ship import ship
from turnout.verifying import verify_database


def client(service: Running, key: str) -> httpx.AsyncClient:
    """A client with a key."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30, verify=False)  # noqa: S501


async def expose(asker: httpx.AsyncClient, experiment: str, units: list[str]) -> dict[str, str]:
    """Expose units, each of which clicks; their variants."""
    body = {"experiments": [experiment], "units": [{"unit": unit} for unit in units]}
    answer = await asker.post("/v1/assign/batch", json=body)
    assert answer.status_code == 200, answer.text
    [told] = answer.json()["experiments"]
    clicks = [{"id": f"c-{unit}", "event": "click", "unit": unit} for unit in units]
    assert (await asker.post("/v1/outcomes", json=clicks)).is_success
    return dict(zip(units, told["variant"], strict=True))


async def begin(asker: httpx.AsyncClient, key: str) -> None:
    """Define and start an experiment, and wait until it is assigned."""
    short = {"key": "click", "role": "primary", "kind": "proportion", "event": "click"}
    body = definition(key=key, metrics=[short | {"window": "1s"}])
    assert (await asker.post("/v1/experiments", json=body)).status_code == 201
    path = f"/v1/experiments/{key}/start"
    assert (await asker.post(path, json={"reason": "a test"})).is_success

    async def assigned() -> bool | None:
        probe = {"experiment": key, "unit": "probe", "expose": False}
        return (await asker.post("/v1/assign", json=probe)).is_success or None

    await eventually(assigned, f"assignment by {key}")


async def report(asker: httpx.AsyncClient, key: str) -> Any:
    """A report."""
    return (await asker.get(f"/v1/experiments/{key}/report")).json()


async def finished(asker: httpx.AsyncClient, key: str, units: int) -> Any:
    """The report, once so many units have had their time."""

    async def whole() -> Any:
        told = await report(asker, key)
        arms = told["metrics"][0]["arms"].values()
        return told if sum(arm["finished"] for arm in arms) == units else None

    return await eventually(whole, f"report of {units} units")


async def units_in(database_url: str, like: str) -> int:
    """How many units a database has exposures of."""
    connection = await asyncpg.connect(database_url)
    try:
        query = "select count(distinct unit) from exposure where unit like $1"
        number: int = await connection.fetchval(query, like)
        return number
    finally:
        await connection.close()


async def copy_of_journal(
    asker: httpx.AsyncClient, database_url: str, data_dir: Path, units: list[str], target: Path
) -> Path:
    """A copy of a router's journal that holds units which Postgres has not seen: as it is on the
    disk of a machine that dies now."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("lock table segment in access exclusive mode")
            await expose(asker, "going", units)
            [journal] = (data_dir / "journals").iterdir()
            shutil.copytree(journal, target)
    finally:
        await connection.close()
    return target


async def test_a_backup_under_load_is_restored_and_the_rest_comes_from_the_journals(
    database_url: str, redis_url: str, servers: LiveServers, tmp_path: Path
) -> None:
    name = f"test_{os.getpid()}_{uuid4().hex[:12]}"
    elsewhere = urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))
    file, old, new = tmp_path / "turnout.dump", tmp_path / "old", tmp_path / "new"
    here = Settings(database_url=database_url, redis_url=redis_url, data_dir=str(old))
    there = Settings(database_url=elsewhere, redis_url=redis_url, data_dir=str(new))
    last = [f"last-{n}" for n in range(40)]
    async with another_database(servers, name):
        async with running(database_url, redis_url, old) as service:
            key = service.admin_key
            async with client(service, key) as asker:
                for experiment in ("ended", "going"):
                    await begin(asker, experiment)
                await expose(asker, "ended", [f"u{n}" for n in range(300)])
                variants = await expose(asker, "going", [f"u{n}" for n in range(300)])
                await finished(asker, "ended", 300)
                over = {"reason": "done", "ship": "old"}
                assert (await asker.post("/v1/experiments/ended/conclude", json=over)).is_success
                before = await finished(asker, "ended", 300)
                saving = asyncio.create_task(back_up(here, file))
                total = 300
                while not saving.done():
                    await expose(asker, "going", [f"u{total + n}" for n in range(50)])
                    total += 50
                assert await saving == file.stat().st_size
                journal = await copy_of_journal(asker, database_url, old, last, tmp_path / "copy")
        with pytest.raises(CannotRunError, match="replaces nothing"):
            await back_up(here, file)
        assert (await restore(there, file, print)).migrated == ()
        with pytest.raises(CannotRunError, match="not empty"):
            await restore(there, file, print)
        assert 300 <= await units_in(elsewhere, "u%") <= total
        assert (await ship(there, journal)).whole
        assert await units_in(elsewhere, "last-%") == 40
        async with running(elsewhere, redis_url, new) as service, client(service, key) as asker:
            again = await report(asker, "ended")
            assert again["units"] == before["units"]
            assert readings_of(again) == readings_of(before)
            body = {"experiments": ["going"], "units": [{"unit": unit} for unit in variants]}
            answer = (await asker.post("/v1/assign/batch", json=body | {"expose": False})).json()
            assert answer["experiments"][0]["variant"] == list(variants.values())
            # Whatever is sent again counts once, be it from the dump, from the journal, or lost.
            everybody = [*last, *(f"u{n}" for n in range(total))]
            await expose(asker, "going", everybody)
            assert await finished(asker, "going", len(everybody))
        assert (await verify_database(there, None, None, print)).found == 0
        entries = await rows(elsewhere, "select action from audit")
        assert {"action": "database.restore"} in entries


@asynccontextmanager
async def another_database(servers: LiveServers, name: str) -> AsyncIterator[None]:
    """An empty database beside that of the test."""
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy')
        yield
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await admin.close()


async def rows(database_url: str, query: str) -> list[dict[str, Any]]:
    """What a database holds."""
    connection = await asyncpg.connect(database_url)
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_what_is_no_backup_leaves_the_database_empty(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    to = ("--database-url", database_url, "--redis-url", redis_url, "--data-dir", tmp_path / "data")
    file = tmp_path / "file"
    assert "there is no file" in refusal("restore", file, *to)
    file.write_bytes(b"PGDMP and no more")
    assert "cannot be read as a backup" in refusal("restore", file, *to)
    assert await rows(database_url, "select 1 from pg_tables where schemaname = 'public'") == []
    assert "nothing to back up" in refusal("backup", tmp_path / "empty", *to)
    assert not (tmp_path / "empty").exists()


async def test_a_backup_that_breaks_off_in_the_middle_restores_nothing(
    database_url: str, redis_url: str, servers: LiveServers, tmp_path: Path
) -> None:
    turnout("migrate", "--database-url", database_url, "--redis-url", redis_url)
    to = ("--redis-url", redis_url, "--data-dir", tmp_path / "data")
    whole, half = tmp_path / "whole", tmp_path / "half"
    done("backup", whole, "--database-url", database_url, *to)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("drop schema public cascade; create schema public")
    finally:
        await connection.close()
    refusal("restore", half, "--database-url", database_url, *to)
    assert await rows(database_url, "select 1 from pg_tables where schemaname = 'public'") == []


def test_a_server_is_dumped_by_programs_that_are_not_older_and_differ_least() -> None:
    found = [Tools(Path("/a"), 18), Tools(Path("/b"), 16), Tools(Path("/c"), 15)]
    assert [fitting(found, server).major for server in (15, 16, 17, 18)] == [15, 16, 18, 18]
    with pytest.raises(CannotRunError, match=r"needs a pg_dump of 19 or later: there is 18 in /a"):
        fitting(found, 19)
