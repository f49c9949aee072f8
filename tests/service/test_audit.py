"""The audit in Postgres: entries are sealed at the commit, and what a superuser does is found."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from experiments import store
from experiments.audit.chain import Link, genesis, hash_of
from experiments.audit.log import Entry, note
from experiments.audit.trail import head_of, links
from experiments.audit.verify import AuditVerifyError, Lines, verify_chains
from tests.service.conftest import database_named
from tests.service.loop import SHOP, Service, definition, metric
from turnout.embedded import LiveServers
from turnout.migrate import migrate, migrations

_AUDIT: Final = 26
NOW: Final = datetime(2026, 7, 1, 12, 0, 0, 12_345, tzinfo=UTC)


def entry(project: str = "shop", action: str = "key.create", **others: Any) -> Entry:
    """An entry of a command."""
    return Entry(
        **{
            "project": project,
            "kind": "command",
            "action": action,
            "target": "keys/é:1,",
            "actor": "command:ops",
            "at": NOW,
            "request_id": "r1",
            "detail": {"note": "ä\u0001😀", "large": 1e22, "none": None},
            **others,
        }
    )


async def project(pool: asyncpg.Pool, *names: str) -> None:
    """Make projects."""
    async with pool.acquire() as connection:
        for name in names:
            await store.create_project(connection, name, NOW)


async def noted(pool: asyncpg.Pool, *entries: Entry) -> None:
    """Note something in a transaction of its own."""
    async with pool.acquire() as connection, connection.transaction():
        for each in entries:
            await note(connection, each)


async def chain(pool: asyncpg.Pool, name: str = "shop") -> list[Link]:
    """All entries of a project."""
    async with pool.acquire() as connection:
        head = await head_of(connection, name)
    return [link async for part in links(pool, name, 0, head.number) for link in part]


async def findings(
    pool: asyncpg.Pool, name: str | None = None, expected: dict[int, str] | None = None
) -> list[str]:
    """What is wrong with the audit."""
    found: list[str] = []
    lines = Lines(lambda finding: found.append(str(finding)), lambda _: None, lambda _: None)
    async with pool.acquire() as connection:
        await verify_chains(connection, name, expected or {}, lines)
    return found


async def tamper(pool: asyncpg.Pool, *statements: str) -> None:
    """Do what only a superuser can, with all triggers off."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("set local session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)


async def test_sql_and_python_compute_the_same_hash(pool: asyncpg.Pool) -> None:
    await project(pool, "shop")
    await noted(pool, entry(), entry(detail={}, request_id="", action="key.revoke"))
    await noted(pool, entry(at=NOW.replace(microsecond=0)))
    sealed = await chain(pool)
    assert [link.number for link in sealed] == [1, 2, 3]
    assert [hash_of(link) for link in sealed] == [link.hash for link in sealed]
    assert sealed[0].previous == genesis("shop").hash
    assert [link.previous for link in sealed[1:]] == [link.hash for link in sealed[:-1]]
    assert sealed[0].at == "2026-07-01T12:00:00.012345Z"
    assert await pool.fetchval("select count(*) from audit_entry") == 0
    assert await findings(pool) == []


@pytest.mark.parametrize(
    "statement",
    [
        "update audit set actor = 'nobody'",
        "delete from audit",
        "truncate audit",
        "insert into audit select project, number + 1, at, kind, action, target, actor, request_id,"
        " detail, decision, previous, hash from audit",
        "update audit_head set number = 0",
        "delete from audit_head",
        "truncate audit_head",
        "insert into audit_head values ('other', 0, '')",
        "update audit_entry set actor = 'nobody'",
        "truncate audit_entry",
        "with said as (insert into audit_entry (project, at, kind, action, target, actor,"
        " request_id, detail) values ('shop', now(), 'key', '', '', '', '', '{}') returning id)"
        " delete from audit_entry where id in (select id from said)",
    ],
)
async def test_nobody_changes_what_is_noted(pool: asyncpg.Pool, statement: str) -> None:
    await project(pool, "shop")
    await noted(pool, entry())
    before = await chain(pool)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await pool.execute(statement)
    assert await chain(pool) == before


async def test_what_is_rolled_back_leaves_neither_an_entry_nor_a_gap(pool: asyncpg.Pool) -> None:
    await project(pool, "shop")
    async with pool.acquire() as connection:
        outer = connection.transaction()
        await outer.start()
        await note(connection, entry(action="gone"))
        await outer.rollback()
        async with connection.transaction():
            await note(connection, entry(action="first"))
            inner = connection.transaction()
            await inner.start()
            await note(connection, entry(action="taken back"))
            await inner.rollback()
            async with connection.transaction():
                await note(connection, entry(action="second"))
    assert [(link.number, link.action) for link in await chain(pool)] == [
        (1, "first"),
        (2, "second"),
    ]
    assert await findings(pool) == []


async def test_a_write_whose_entry_cannot_be_sealed_is_not_done(pool: asyncpg.Pool) -> None:
    async def write() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("insert into lease values ('mine', 'me', 1, 'infinity')")
            await note(connection, entry("nothing"))

    with pytest.raises(asyncpg.DataCorruptedError, match="no audit chain"):
        await write()
    assert await pool.fetchval("select count(*) from lease where name = 'mine'") == 0


async def test_who_hangs_in_a_transaction_keeps_nobody_from_noting(pool: asyncpg.Pool) -> None:
    await project(pool, "shop")
    async with pool.acquire() as hangs:
        transaction = hangs.transaction()
        await transaction.start()
        await note(hangs, entry(action="late"))
        async with asyncio.timeout(10):  # a bound, not a wait
            await noted(pool, entry(action="early"))
        await transaction.commit()
    assert [link.action for link in await chain(pool)] == ["early", "late"]  # as they committed


async def test_many_at_once_and_in_any_order_of_projects_make_whole_chains(
    pool: asyncpg.Pool,
) -> None:
    names = ["bank", "mail", "shop"]
    await project(pool, *names)

    async def write(turn: int) -> None:
        order = names[turn % 3 :] + names[: turn % 3]
        for _ in range(10):
            await noted(pool, *map(entry, order if turn % 2 else order[::-1]))

    await asyncio.gather(*map(write, range(5)))
    for name in names:
        assert [link.number for link in await chain(pool, name)] == list(range(1, 51))
    assert await findings(pool) == []


async def test_a_snapshot_that_is_too_old_is_refused_whole(pool: asyncpg.Pool) -> None:
    await project(pool, "shop")

    async def write() -> None:
        async with pool.acquire() as old, old.transaction(isolation="repeatable_read"):
            await note(old, entry(action="old"))
            await noted(pool, entry(action="new"))

    with pytest.raises(asyncpg.SerializationError):
        await write()
    assert [link.action for link in await chain(pool)] == ["new"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("project", "'bank'"),
        ("number", "77"),
        ("at", "at + interval '1 microsecond'"),
        ("kind", "'key'"),
        ("action", "'key.revoke'"),
        ("target", "'keys/2'"),
        ("actor", "'command:other'"),
        ("request_id", "'r2'"),
        ("detail", "'{\"note\": 1}'"),
        ("decision", "1"),
        ("previous", "'\\x00'"),
        ("hash", "'\\x00'"),
    ],
)
async def test_a_change_of_any_column_is_found(pool: asyncpg.Pool, column: str, value: str) -> None:
    await project(pool, "bank", "shop")
    await noted(pool, *(entry() for _ in range(4)))
    statement = f"update audit set {column} = {value} where project = 'shop' and number = 3"  # noqa: S608
    await tamper(pool, statement)
    found = await findings(pool)
    assert found
    assert any(line.startswith(("shop 3:", "shop 4:", "bank 3:")) for line in found), found


async def test_what_is_taken_out_swapped_cut_off_or_appended_is_found(pool: asyncpg.Pool) -> None:
    await project(pool, "bank", "mail", "shop", "toys", "zoo")
    for name in ("bank", "mail", "shop", "toys", "zoo"):
        await noted(pool, *(entry(name, f"act.{number}") for number in range(1, 6)))
    end = (await chain(pool, "toys"))[-1]
    await tamper(
        pool,
        "delete from audit where project = 'bank' and number = 3",
        "update audit set number = 77 where project = 'mail' and number = 2",
        "update audit set number = 2 where project = 'mail' and number = 3",
        "update audit set number = 3 where project = 'mail' and number = 77",
        "delete from audit where project = 'shop' and number > 3",
        # With its head: only who knows the end from elsewhere finds this.
        "delete from audit where project = 'toys' and number > 3",
        "update audit_head h set number = 3, hash = a.hash from audit a"
        " where h.project = 'toys' and a.project = 'toys' and a.number = 3",
        "insert into audit select project, number + 1, at, kind, action, target, actor, request_id,"
        " detail, decision, hash, hash from audit where project = 'zoo' and number = 5",
    )
    assert await findings(pool, "bank") == ["bank 3: entry 3 is missing"]
    mail = await findings(pool, "mail")
    assert any(line.startswith("mail 2: was changed") for line in mail)
    assert any(line.startswith("mail 3: was changed") for line in mail)
    assert await findings(pool, "shop") == ["shop 3: the chain is cut off: it went on to 5"]
    assert await findings(pool, "toys") == []
    assert await findings(pool, "toys", {end.number: end.hash}) == [
        "toys 5: was expected, and is not there"
    ]
    assert "zoo 6: was appended past the head, 5" in await findings(pool, "zoo")
    with pytest.raises(AuditVerifyError, match="no project nothing"):
        await findings(pool, "nothing")
    await tamper(pool, "delete from audit_head where project = 'bank'")
    assert "bank 0: the head of its chain is gone" in await findings(pool, "bank")


async def test_every_decision_has_an_entry_under_its_seal(service: Service) -> None:
    await service.begin(definition("ranker", metric("click", "primary")))
    sealed = await chain(service.pool, SHOP)
    [decision] = await service.fetch("select id, seal, actor from decision")
    assert [(link.kind, link.action, link.actor) for link in sealed] == [
        ("decision", "decision.start", decision["actor"])
    ]
    assert f'"seal": "{decision["seal"]}"' in sealed[0].detail
    assert await findings(service.pool) == []


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("update decision set reason = 'another'", "was changed: it differs from its seal"),
        ("update decision set seal = repeat('0', 64)", "has another seal"),
        ("update decision set evidence = '{\"n\": 1}'", "was changed: it differs from its seal"),
        ("delete from decision", "is gone"),
        ("delete from audit; update audit_head set number = 0", "has no entry"),
        ("update audit set decision = null", "has no entry"),
    ],
)
async def test_a_decision_that_differs_from_its_entry_is_found(
    service: Service, statement: str, says: str
) -> None:
    await service.begin(definition("ranker", metric("click", "primary")))
    await tamper(service.pool, statement)
    assert any(says in line for line in await findings(service.pool))


async def test_a_project_of_an_earlier_release_begins_its_chain_with_the_migration(
    servers: LiveServers, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
        for migration in migrations():
            if folder == after or migration.number < _AUDIT:
                (folder / migration.name).write_text(migration.sql, encoding="utf-8")
    admin = await asyncpg.connect(servers.database_url)
    name = f"audit_{os.getpid()}"
    await admin.execute(f'create database "{name}" template template0')
    try:
        async with asyncpg.create_pool(database_named(servers, name), min_size=1) as pool:
            async with pool.acquire() as connection:
                await migrate(connection, before)
            await project(pool, "bank", "shop")
            await pool.execute(
                """with x as (
                       insert into experiment (project, key, state, revision, definition,
                                               created_at, updated_at)
                       values ('shop', 'old', 'draft', 1, '{}', now(), now()) returning id
                   )
                   insert into decision (experiment, run, kind, epoch_before, epoch_after, at,
                                         actor, reason, evidence)
                   select id, 1, 'hold', 1, 1, now(), 'controller', '', 'null' from x"""
            )
            async with pool.acquire() as connection:
                await migrate(connection, after)
            [begun] = await chain(pool, "shop")
            assert (begun.action, begun.actor) == ("audit.begin", "system")
            assert '"decisions_through": 1' in begun.detail
            assert await findings(pool) == []
            # From now on every decision has an entry, whatever release it is that decides.
            await pool.execute(
                """insert into decision (experiment, run, kind, epoch_before, epoch_after, at,
                                         actor, reason, evidence)
                   select id, 1, 'hold', 1, 1, now(), 'controller', '', 'null' from experiment"""
            )
            assert [link.action for link in await chain(pool)] == ["audit.begin", "decision.hold"]
            assert await findings(pool) == []
    finally:
        await admin.execute(f'drop database "{name}" with (force)')
        await admin.close()
