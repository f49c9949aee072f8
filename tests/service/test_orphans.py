"""Journals of dead processes: adopted, shipped once, withdrawn and removed."""

import asyncio
import logging
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from router.journal import Journal, JournalLockedError
from router.orphans import Orphans, journals_of
from router.records import OutcomeRecord
from router.shipper import Pace, Shipper
from turnout.embedded import LiveServers

NOW = datetime(2024, 5, 6, 23, 59, 30, tzinfo=UTC)


def now() -> datetime:
    """A clock that stands still."""
    return NOW


def outcome(value: float) -> OutcomeRecord:
    """An outcome that is told apart by its value."""
    return OutcomeRecord(None, "shop", "click", (("user", "u1"),), value, NOW, NOW)


@asynccontextmanager
async def looking(pool: asyncpg.Pool, data_dir: Path) -> AsyncIterator[Orphans]:
    """A process that looks for orphans."""

    def new_shipper(journal: Journal) -> Shipper:
        return Shipper(pool, journal, now, random.Random(7), Pace(timeout=5.0))  # noqa: S311

    orphans = Orphans(data_dir, now, new_shipper)
    try:
        yield orphans
    finally:
        await orphans.close()


async def leave(data_dir: Path, *values: float) -> Path:
    """Leave a journal as a process does that could ship nothing."""
    before = set(folders(data_dir))
    journal = await Journal.begin(journals_of(data_dir), now)
    for value in values:
        await journal.append([outcome(value)])
    await journal.close()
    (made,) = set(folders(data_dir)) - before
    return made


def folders(data_dir: Path) -> list[Path]:
    """The folders of all journals."""
    place = journals_of(data_dir)
    return sorted(place.iterdir()) if place.exists() else []


def copied(folder: Path, target: Path) -> Path:
    """A copy, with all that is in it."""
    return Path(shutil.copytree(folder, target))


def damage(folder: Path) -> None:
    """Flip a bit in the first record."""
    path = min(folder.glob("*.segment"))
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


async def stored(pool: asyncpg.Pool) -> list[float]:
    """The values of all outcomes in Postgres."""
    return [row["value"] for row in await pool.fetch("select value from outcome order by value")]


async def announced(pool: asyncpg.Pool) -> int:
    """How many journals the watermark waits for."""
    number: int = await pool.fetchval("select count(*) from journal")
    return number


async def test_what_dead_processes_left_is_shipped_and_removed(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    for number in range(20):  # more than are adopted at once
        await leave(tmp_path, number, number + 100)
    await leave(tmp_path)
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
        await orphans.look()
        assert (orphans.shipped, orphans.segments, orphans.records) == (21, 20, 40)
        assert (orphans.waiting, orphans.kept, orphans.failures) == (0, 0, 0)
    assert await stored(pool) == [*range(20), *range(100, 120)]
    assert await announced(pool) == 0
    assert folders(tmp_path) == []


async def test_the_journal_of_an_earlier_version_is_adopted(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    (await leave(tmp_path, 1)).rename(tmp_path / "journal")
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
    assert await stored(pool) == [1]
    assert not (tmp_path / "journal").exists()


async def test_the_journal_of_a_living_process_is_let_alone(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    journal = await Journal.begin(journals_of(tmp_path), now)
    await journal.append([outcome(1)])
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
        assert orphans.waiting == 0
        await journal.append([outcome(2)])
        await journal.close()
        await orphans.look()
    assert await stored(pool) == [1, 2]


async def test_a_start_that_was_cut_off_leaves_nothing(pool: asyncpg.Pool, tmp_path: Path) -> None:
    (journals_of(tmp_path) / "empty").mkdir(parents=True)
    (journals_of(tmp_path) / "begun").mkdir()
    (journals_of(tmp_path) / "begun" / "id.draft").touch()
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
        assert orphans.kept == 0
    assert folders(tmp_path) == []


async def test_the_watermark_waits_for_an_orphan_from_its_oldest_record_on(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    await leave(tmp_path, 1)
    async with looking(pool, tmp_path) as orphans:
        await orphans.claim()
        assert await pool.fetchval("select shipped_through from journal") == NOW
        assert orphans.depth > 0
        assert await stored(pool) == []


async def test_a_copy_that_was_shipped_before_doubles_nothing(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    original = await leave(tmp_path, 1, 2)
    copy = copied(original, tmp_path / "copy")
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
        copy.rename(journals_of(tmp_path) / "restored")
        new = await leave(tmp_path, 3)
        assert new.name != original.name
        await orphans.look()
        assert (orphans.shipped, orphans.segments) == (3, 2)
    assert await stored(pool) == [1, 2, 3]
    assert folders(tmp_path) == []


async def test_damage_is_left_for_an_operator_and_said_once(
    pool: asyncpg.Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await leave(tmp_path, 1, 2)
    damage(folder)
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
        await orphans.look()
        assert (orphans.kept, orphans.shipped, orphans.damaged) == (1, 1, 1)
    said = [record for record in caplog.records if record.message == "orphan journal kept"]
    assert [vars(record)["folder"] for record in said] == [str(folder)]
    assert await stored(pool) == [2]
    assert await announced(pool) == 0
    assert len(list(folder.glob("*.damaged"))) == 1


async def test_what_cannot_be_read_holds_up_no_other(
    pool: asyncpg.Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = await leave(tmp_path, 1)
    (unreadable / "id").write_text("nonsense")
    await leave(tmp_path, 2)
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
        assert (orphans.kept, orphans.shipped) == (1, 1)
    assert await stored(pool) == [2]
    assert folders(tmp_path) == [unreadable]
    assert "does not hold the id" in vars(caplog.records[0])["reason"]


async def test_while_postgres_is_away_orphans_are_held_and_nothing_is_lost(
    servers: LiveServers,
    migrated_url: str,
    pool: asyncpg.Pool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "router.orphans")
    folder = await leave(tmp_path, 1)
    name = urlsplit(migrated_url).path[1:]
    admin = await asyncpg.connect(servers.database_url)
    async with looking(pool, tmp_path) as orphans:
        try:
            await admin.execute(f'alter database "{name}" allow_connections false')
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
            )
            running = asyncio.create_task(orphans.run())
            async with asyncio.timeout(20):
                while not orphans.failures:  # noqa: ASYNC110 - a counter tells nobody
                    await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert orphans.waiting == 1
            with pytest.raises(JournalLockedError):
                await Journal.adopt(folder, now)
        finally:
            await admin.execute(f'alter database "{name}" allow_connections true')
            await admin.close()
        await orphans.look()
    assert await stored(pool) == [1]
    assert folders(tmp_path) == []


async def test_a_copy_of_what_was_still_being_written_takes_nothing_from_the_rest(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    journal = await Journal.begin(journals_of(tmp_path), now)
    await journal.append([outcome(1)])
    (folder,) = folders(tmp_path)
    other = tmp_path / "other"
    copied(folder, journals_of(other) / "copy")
    await journal.append([outcome(2)])
    async with looking(pool, other) as elsewhere:
        await elsewhere.look()
    assert await stored(pool) == [1]
    await journal.close()
    again = copied(folder, other / "again")
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
    assert await stored(pool) == [1, 2]
    again.rename(journals_of(other) / "again")
    async with looking(pool, other) as elsewhere:
        await elsewhere.look()
    assert await stored(pool) == [1, 2]
    assert folders(other) == []


async def test_an_old_copy_doubles_nothing_though_its_segments_were_forgotten(
    pool: asyncpg.Pool, tmp_path: Path
) -> None:
    """Retention remembers the last segment of a journal only."""
    journal = await Journal.begin(journals_of(tmp_path), now)
    for value in (1, 2, 3):
        await journal.append([outcome(value)])
        await journal.rotate()
    (folder,) = folders(tmp_path)
    copied(folder, journals_of(tmp_path / "other") / "copy")
    await journal.close()
    async with looking(pool, tmp_path) as orphans:
        await orphans.look()
    assert await stored(pool) == [1, 2, 3]
    await pool.execute("delete from segment where number < (select max(number) from segment)")
    async with looking(pool, tmp_path / "other") as elsewhere:
        await elsewhere.look()
    assert await stored(pool) == [1, 2, 3]
    assert folders(tmp_path / "other") == []
