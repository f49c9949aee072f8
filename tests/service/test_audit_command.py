"""`turnout audit`: the chain goes out, and is verified with a database and without one."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from tests.service.test_audit import entry, noted, project, tamper
from turnout.cli import main


async def run(*arguments: str) -> int:
    """Run the command beside the test's own loop; its status."""
    return await asyncio.to_thread(main, ["audit", *arguments])


@pytest.fixture
def settings(migrated_url: str, redis_url: str, tmp_path: Path) -> list[str]:
    """The flags that name the database."""
    folder = str(tmp_path / "data")
    return ["--database-url", migrated_url, "--redis-url", redis_url, "--data-dir", folder]


async def test_an_export_is_verified_without_a_database(
    pool: asyncpg.Pool, settings: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    await project(pool, "bank", "shop")
    await noted(pool, *(entry(name) for name in ("shop", "bank", "shop")))
    assert await run("export", *settings) == 0
    told = capfd.readouterr()
    assert "turnout: shop: to 2:" in told.err
    export = tmp_path / "audit.ndjson"
    export.write_text(told.out, encoding="utf-8")
    assert await run("verify", "--file", str(export)) == 0
    shop = capfd.readouterr().out.splitlines()[-1]
    assert shop.startswith("shop: 2 entries, to 2:")
    export.write_text("\n".join(told.out.splitlines()[1:]).replace("key.create", "x", 1), "utf-8")
    assert await run("verify", "--file", str(export)) == 1
    assert "was changed" in capfd.readouterr().out


async def test_a_database_is_verified_against_what_was_known(
    pool: asyncpg.Pool, settings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    await project(pool, "shop")
    await noted(pool, entry(), entry())
    assert await run("verify", *settings) == 0
    mark = capfd.readouterr().out.split()[-1]
    only = ["--project", "shop", "--expect", mark]
    assert await run("verify", *settings, *only) == 0
    await tamper(pool, "delete from audit", "update audit_head set number = 0")
    await tamper(pool, "update audit_head set hash = audit_genesis('shop')")
    assert await run("verify", *settings) == 0  # all of it is gone: nothing here tells of it
    capfd.readouterr()
    assert await run("verify", *settings, *only) == 1
    assert "shop 2: was expected, and is not there" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "--file", "nothing.ndjson"], "nothing.ndjson"),
        (["verify", "--project", "shop", "--expect", "7"], "NUMBER:HASH"),
        (["verify", "--expect", f"7:{'0' * 64}"], "--project"),
        (["verify", "--project", "nothing"], "no project nothing"),
        (["export", "--project", "nothing"], "no audit of a project"),
    ],
)
async def test_what_cannot_run_says_why_in_a_line(
    settings: list[str], arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await run(*arguments, *settings) == 2
    told = capfd.readouterr()
    assert says in told.err
    assert told.out == ""
