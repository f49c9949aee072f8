"""What is in a journal when its unit is erased does not come in; what comes later does."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from analysis.upkeep.erase import Erased, Order, erase
from experiments import store
from experiments.projects import set_units, unit_key
from experiments.units import SHIPPING_LOCK, UnitKey
from router.journal import Journal
from router.records import ExposureRecord, OutcomeRecord, Record, decode, exposure_id, names_unit
from router.shipper import Pace, Shipper
from router.units import hash_units

NOW = datetime(2026, 5, 6, 12, 0, tzinfo=UTC)
SECRET = bytes(range(32))
KEY = UnitKey(SECRET)
SHOP, STAGING = "shop", "shop-staging"


def second(number: float) -> datetime:
    """A time, in seconds after noon."""
    return NOW + timedelta(seconds=number)


def exposure(unit: str, at: float = 0, project: str = SHOP) -> ExposureRecord:
    """A unit meets a variant."""
    name = exposure_id(1, 1, 1, "a", unit)
    when = second(at)
    return ExposureRecord(name, project, 1, 1, 1, "a", "user", unit, when, when)


def outcome(
    *units: tuple[str, str], at: float = 0, value: float | None = 1.0, project: str = SHOP
) -> OutcomeRecord:
    """Something happens to units."""
    return OutcomeRecord(None, project, "click", units, value, second(at), second(at))


@pytest_asyncio.fixture
async def database(pool: asyncpg.Pool) -> asyncpg.Pool:
    """A database with two projects, whose keys have the same secret."""
    async with pool.acquire() as connection:
        for project in (SHOP, STAGING):
            await store.create_project(connection, project, NOW)
            await unit_key(connection, project, lambda size: SECRET[:size])
    return pool


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """A journal on an empty folder."""
    opened = await Journal.open(tmp_path / "journal", lambda: NOW)
    yield opened
    await opened.close()


@pytest.fixture
def shipper(database: asyncpg.Pool, journal: Journal) -> Shipper:
    """The shipper of the journal."""
    generator = random.Random(7)  # noqa: S311 - jitter, no secrets
    return Shipper(database, journal, lambda: NOW, generator, Pace(timeout=5.0))


async def erased(
    pool: asyncpg.Pool, *units: tuple[str, str], at: float, project: str = SHOP
) -> Erased:
    """Erase units at a time."""
    async with pool.acquire() as connection, connection.transaction():
        order = Order(project, units, "tester", "a request")
        return await erase(connection, order, KEY, lambda: second(at), names_unit)


async def came_in(pool: asyncpg.Pool, table: str) -> list[tuple[str, str, float]]:
    """Project, unit and second of receipt of what is in a table."""
    rows = await pool.fetch(
        f"select project, unit, received_at from {table} order by project, unit, received_at"  # noqa: S608
    )
    return [
        (row["project"], row["unit"], (row["received_at"] - NOW).total_seconds()) for row in rows
    ]


async def hash_from_now_on(pool: asyncpg.Pool, project: str = SHOP) -> None:
    """The project stores its units keyed-hashed."""
    async with pool.acquire() as connection, connection.transaction():
        await set_units(connection, project, "hashed", lambda size: SECRET[:size])


async def test_what_was_received_before_is_dropped_and_what_comes_later_stays(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    for at in (1, 2, 3):
        await journal.append(
            [
                exposure("42", at),
                exposure("43", at),
                exposure("42", at, STAGING),
                outcome(("user", "42"), at=at),
                outcome(("session", "42"), at=at),
            ]
        )
    assert await erased(database, ("user", "42"), at=2) == Erased()
    await shipper.ship_once()
    assert await came_in(database, "exposure") == [
        (SHOP, "42", 3),
        *((SHOP, "43", at) for at in (1, 2, 3)),
        *((STAGING, "42", at) for at in (1, 2, 3)),
    ]
    rows = await database.fetch("select unit_type from outcome order by received_at, unit_type")
    assert [row["unit_type"] for row in rows] == ["session"] * 3 + ["user"]
    assert await database.fetchval("select records from segment") == 15
    assert (shipper.records, shipper.letters, shipper.duplicates) == (15, 0, 0)


async def test_of_an_outcome_of_several_units_the_others_stay(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await journal.append([outcome(("session", "s"), ("user", "42"))])
    await erased(database, ("user", "42"), at=0)
    await shipper.ship_once()
    assert await came_in(database, "outcome") == [(SHOP, "s", 0)]


async def test_the_last_erasure_of_a_unit_counts(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await journal.append([exposure("42", at) for at in (1, 2, 3, 4)])
    for at in (1, 3, 2):
        await erased(database, ("user", "42"), at=at)
    await shipper.ship_once()
    assert await came_in(database, "exposure") == [(SHOP, "42", 4)]


async def test_a_journal_that_comes_very_late_meets_the_tombstone(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await journal.append([exposure("42"), exposure("43", at=4_000_000)])
    await erased(database, ("user", "42"), at=3_000_000)
    await shipper.ship_once()
    assert await came_in(database, "exposure") == [(SHOP, "43", 4_000_000)]


async def test_no_dead_letter_names_an_erased_unit(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await database.execute("alter table outcome add check (value <> 13)")
    flawed = float("nan")
    await journal.append(
        [
            outcome(("user", "42"), value=flawed),
            outcome(("user", "43"), value=flawed),
            outcome(("user", "42"), ("session", "s"), value=13),
            outcome(),
        ]
    )
    await erased(database, ("user", "42"), at=0)
    await shipper.ship_once()
    rows = await database.fetch("select ordinal, record from dead_letter order by ordinal")
    assert [row["ordinal"] for row in rows] == [1, 2, 3]
    named = [decode(row["record"]) for row in rows]
    assert [list(record.units) for record in named if isinstance(record, OutcomeRecord)] == [
        [("user", "43")],
        [("session", "s")],
        [],
    ]


async def test_an_erasure_waits_for_what_is_being_shipped_and_finds_it(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    """The records are read and the tombstones looked up; only the commit is missing."""
    await journal.append([exposure("43")])
    await shipper.ship_once()  # and so the day has its partition
    await journal.append([exposure("42")])
    async with database.acquire() as blocker, blocker.transaction():
        await blocker.execute("lock table exposure in access exclusive mode")
        shipping = asyncio.create_task(shipper.ship_once())
        await _waiting(database, 1)
        erasing = asyncio.create_task(erased(database, ("user", "42"), at=1))
        await _waiting(database, 2)
    await shipping
    assert await erasing == Erased(exposures=1)
    assert await came_in(database, "exposure") == [(SHOP, "43", 0)]


async def test_what_is_shipped_waits_for_an_erasure_and_meets_its_tombstone(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await journal.append([exposure("42"), exposure("43")])
    async with database.acquire() as connection, connection.transaction():
        order = Order(SHOP, (("user", "42"),), "tester", "a request")
        await erase(connection, order, KEY, lambda: NOW, names_unit)
        shipping = asyncio.create_task(shipper.ship_once())
        await _waiting(database, 1)
    await shipping
    assert await came_in(database, "exposure") == [(SHOP, "43", 0)]


async def _waiting(pool: asyncpg.Pool, number: int) -> None:
    """Wait until so many connections wait for a lock."""
    query = """
        select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
    """
    async with asyncio.timeout(10):
        while await pool.fetchval(query) < number:  # noqa: ASYNC110 - Postgres tells nobody
            await asyncio.sleep(0.01)


async def test_what_was_recorded_plain_is_stored_hashed(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    """A router records plain units until it has heard that they are to be hashed."""
    await hash_from_now_on(database)
    seen = exposure("42")
    await journal.append(
        [
            seen,
            exposure("42", project=STAGING),
            outcome(("user", "42"), ("session", "s")),
            outcome(("user", "42"), value=float("nan")),
            hash_units(outcome(("user", "43")), KEY),
        ]
    )
    with_the_names = KEY.hashed("user", "42"), KEY.hashed("session", "s"), KEY.hashed("user", "43")
    await shipper.ship_once()
    user, session, other = with_the_names
    assert await came_in(database, "exposure") == [(SHOP, user, 0), (STAGING, "42", 0)]
    assert {unit for _, unit, _ in await came_in(database, "outcome")} == {user, session, other}
    name = await database.fetchval("select id from exposure where project = $1", SHOP)
    assert name.bytes == exposure_id(1, 1, 1, "a", user) != seen.id
    [letter] = await database.fetch("select record from dead_letter")
    assert list(decode(letter["record"]).units) == [("user", user)]  # type: ignore[union-attr]


async def test_a_hashed_unit_is_erased_by_what_is_stored_of_it(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await hash_from_now_on(database)
    records: list[Record] = [exposure("42"), exposure("43"), outcome(("user", "42"))]
    await journal.append([hash_units(record, KEY) for record in records])
    await journal.append(records)
    await erased(database, ("user", KEY.hashed("user", "42")), at=0)
    await shipper.ship_once()
    other = (SHOP, KEY.hashed("user", "43"), 0)
    assert await came_in(database, "exposure") == [other, other]
    assert await came_in(database, "outcome") == []


async def test_units_are_fixed_as_soon_as_events_are_about_to_go_in(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await journal.append([exposure("42", project=STAGING)])
    await shipper.ship_once()
    rows = await database.fetch("select key, has_events from project")
    assert {row["key"]: row["has_events"] for row in rows} == {SHOP: False, STAGING: True}


async def test_shippers_do_not_wait_for_each_other(
    database: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    async with database.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock_shared($1)", SHIPPING_LOCK)
        await journal.append([exposure("42")])
        await shipper.ship_once()
    assert len(await came_in(database, "exposure")) == 1


def test_no_text_of_a_key_shows_its_secret() -> None:
    for text in (repr(KEY), str(KEY), repr([KEY])):
        assert SECRET.hex() not in text
        assert repr(SECRET) not in text
    with pytest.raises(TypeError):
        msgspec.json.encode(KEY)
