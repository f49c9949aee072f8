"""The shipper against a real Postgres: every record goes in, once, whatever happens on the way."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from router.frames import frame
from router.journal import Journal, JournalWriteError
from router.records import ExposureRecord, OutcomeRecord, Record, encode
from router.shipper import Pace, Shipper
from turnout.embedded import LiveServers

NOW = datetime(2024, 5, 6, 23, 59, 30, tzinfo=UTC)

CUT_WHO_WAITS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    """The clock of router, journal and shipper."""
    return Clock()


@pytest_asyncio.fixture
async def journal(tmp_path: Path, clock: Clock) -> AsyncIterator[Journal]:
    """A journal on an empty folder."""
    opened = await Journal.open(tmp_path / "journal", clock)
    yield opened
    await opened.close()


def shipper_of(pool: asyncpg.Pool, journal: Journal, clock: Callable[[], datetime]) -> Shipper:
    """A shipper in a hurry."""
    generator = random.Random(7)  # noqa: S311  jitter, no secrets
    return Shipper(pool, journal, clock, generator, Pace(0.02, longest_wait=0.2, timeout=5.0))


@pytest.fixture
def shipper(pool: asyncpg.Pool, journal: Journal, clock: Clock) -> Shipper:
    """The shipper of the journal."""
    return shipper_of(pool, journal, clock)


def exposure(unit: str = "u1", **changes: object) -> ExposureRecord:
    """An exposure."""
    record = ExposureRecord(
        uuid4().bytes, "shop", 1, 2, 3, "v7", "user", unit, NOW - timedelta(seconds=5), NOW
    )
    return msgspec.structs.replace(record, **changes)


def outcome(value: float | None, key: bytes | None = None, **changes: object) -> OutcomeRecord:
    """An outcome."""
    record = OutcomeRecord(key, "shop", "click", (("user", "u1"),), value, NOW, NOW)
    return msgspec.structs.replace(record, **changes)


async def values(pool: asyncpg.Pool) -> list[float]:
    """The values of all outcomes."""
    rows = await pool.fetch("select value from outcome order by value")
    return [row["value"] for row in rows]


async def letters(pool: asyncpg.Pool) -> list[tuple[int, str, bytes]]:
    """All dead letters."""
    rows = await pool.fetch("select ordinal, reason, record from dead_letter order by ordinal")
    return [(row["ordinal"], row["reason"], row["record"]) for row in rows]


async def mark(pool: asyncpg.Pool, journal: Journal) -> datetime | None:
    """How far the journal has come, as Postgres knows."""
    row = await pool.fetchrow("select shipped_through from journal where id = $1", journal.id)
    return None if row is None else row["shipped_through"]


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  counters tell nobody
            await asyncio.sleep(0.01)


async def test_records_arrive_as_they_were_written(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    met = exposure(
        "ünït-😀", attributes={"country": "DE", "tags": ["a", 1.5, None], "n": {"b": True}}
    )
    plain = exposure("u2")
    happened = outcome(
        2.5,
        uuid4().bytes,
        units=(("user", "u1"), ("session", "s1")),
        attributes={"text": 'back\\u0000slash "quoted"'},
    )
    bare = outcome(None)
    await journal.append([met, happened, plain, bare])
    await shipper.ship_once()

    segment = await pool.fetchrow("select * from segment")
    assert segment is not None
    assert (segment["journal"], segment["number"], segment["records"]) == (journal.id, 1, 4)
    assert segment["folded_at"] is None

    rows = await pool.fetch("select * from exposure order by unit")
    assert [tuple(row) for row in rows] == [
        (
            segment["id"],
            UUID(bytes=record.id),
            record.project,
            record.experiment,
            record.run,
            record.epoch,
            record.variant,
            record.unit_type,
            record.unit,
            record.at,
            record.received_at,
            attributes,
        )
        for record, attributes in (
            (plain, None),
            (met, '{"n": {"b": true}, "tags": ["a", 1.5, null], "country": "DE"}'),
        )
    ]
    rows = await pool.fetch("select * from outcome order by ordinal, unit_type")
    assert happened.id is not None
    key = UUID(bytes=happened.id)
    assert [(row["ordinal"], row["id"], row["unit_type"], row["unit"]) for row in rows] == [
        (1, key, "session", "s1"),
        (1, key, "user", "u1"),
        (3, None, "user", "u1"),
    ]
    assert [row["value"] for row in rows] == [2.5, 2.5, None]
    assert msgspec.json.decode(rows[0]["attributes"]) == happened.attributes
    assert {row["received_at"] for row in rows} == {NOW}
    assert journal.sealed() == []
    assert journal.depth == 0
    assert (shipper.segments, shipper.records, shipper.letters) == (1, 4, 0)


async def test_shipping_again_ships_nothing_again(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    for number in range(3):
        await journal.append([outcome(number), exposure()])
        await journal.rotate()
    await shipper.ship_once()
    await shipper.ship_once()
    assert await values(pool) == [0, 1, 2]
    assert await pool.fetchval("select count(*) from exposure") == 3
    assert await pool.fetchval("select array_agg(number order by id) from segment") == [1, 2, 3]


async def test_a_crash_between_commit_and_removal_doubles_nothing(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, clock: Clock, tmp_path: Path
) -> None:
    await journal.append([outcome(1), outcome(2, uuid4().bytes), exposure()])
    await journal.rotate()
    (segment,) = journal.sealed()
    data = segment.path.read_bytes()
    await shipper.ship_once()
    await journal.close()
    segment.path.write_bytes(data)  # the removal never happened

    again = await Journal.adopt(tmp_path / "journal", clock)
    try:
        assert [left.number for left in again.sealed()] == [segment.number]
        second = shipper_of(pool, again, clock)
        await second.ship_once()
        assert await values(pool) == [1, 2]
        assert await pool.fetchval("select count(*) from exposure") == 1
        assert (second.segments, second.records) == (0, 0)
        assert again.sealed() == []
    finally:
        await again.close()


async def test_an_id_counts_once(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, clock: Clock, tmp_path: Path
) -> None:
    first, second = uuid4().bytes, uuid4().bytes
    await journal.append([outcome(1, first), outcome(1, first), outcome(9), outcome(9)])
    await journal.rotate()
    await journal.append([outcome(1, first), outcome(2, second)])
    await shipper.ship_once()
    other = await Journal.open(tmp_path / "other", clock)
    try:
        await other.append([outcome(2, second), outcome(3, uuid4().bytes)])
        await shipper_of(pool, other, clock).ship_once()
    finally:
        await other.close()
    assert await values(pool) == [1, 2, 3, 9, 9]
    assert await pool.fetchval("select count(*) from outcome_id") == 3
    assert shipper.duplicates == 2


async def test_of_outcomes_with_one_id_the_first_stays(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    key = uuid4().bytes
    await journal.append([outcome(5, key), outcome(6, key)])
    await shipper.ship_once()
    assert await values(pool) == [5]


async def test_what_an_older_version_left_in_the_journal_is_shipped(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    key = uuid4()
    await journal.append([exposure("u1")])
    await journal.rotate()
    (segment,) = journal.sealed()
    tail = ["shop", "click", [["user", "u1"]]]
    older = [
        ["outcome", str(key), *tail, 1.5, NOW - timedelta(seconds=5), NOW, {"country": "AT"}],
        ["outcome", None, *tail, None, NOW, NOW],
    ]
    with segment.path.open("ab") as file:
        file.write(b"".join(frame(msgspec.msgpack.encode(record)) for record in older))
    await journal.append([outcome(9, key.bytes)])
    await shipper.ship_once()
    rows = await pool.fetch("select id, unit, value, at, attributes from outcome order by value")
    assert [tuple(row) for row in rows] == [
        (key, "u1", 1.5, NOW - timedelta(seconds=5), '{"country": "AT"}'),
        (None, "u1", None, NOW, None),
    ]
    assert (shipper.letters, shipper.duplicates) == (0, 1)


async def test_shippers_that_take_the_same_ids_at_once_do_not_stop_each_other(
    pool: asyncpg.Pool, clock: Clock, tmp_path: Path
) -> None:
    keys = [uuid4().bytes for _ in range(3_000)]
    journals = [await Journal.open(tmp_path / str(n), clock) for n in range(4)]
    shippers = [shipper_of(pool, journal, clock) for journal in journals]
    try:
        for number, journal in enumerate(journals):
            order = keys[number * 500 :] + keys[: number * 500]
            await journal.append([outcome(keys.index(key), key) for key in order])
        await asyncio.gather(*(shipper.ship_once() for shipper in shippers))
    finally:
        for journal in journals:
            await journal.close()
    assert await values(pool) == list(range(3_000))
    assert sum(shipper.duplicates for shipper in shippers) == 3 * 3_000


async def test_many_ids_at_once(pool: asyncpg.Pool, journal: Journal, shipper: Shipper) -> None:
    keys = [uuid4().bytes for _ in range(12_000)]
    await journal.append([outcome(n, key) for n, key in enumerate(keys)])
    await journal.append([outcome(-1, key) for key in keys])
    await shipper.ship_once()
    assert await values(pool) == list(range(12_000))
    assert shipper.duplicates == 12_000


async def test_poison_is_set_aside_and_the_rest_is_stored(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, caplog: pytest.LogCaptureFixture
) -> None:
    records: list[Record] = [
        outcome(0),
        outcome(-1, units=(("user", "u\0"),)),
        outcome(1),
        outcome(-1, attributes={"a": [{"b\0": 1}]}),
        exposure("e\0"),
        exposure("good"),
        outcome(float("nan")),
        outcome(float("inf")),
        outcome(-1, units=()),
        exposure("too large a run", run=2**31),
        outcome(-1, at=datetime(2024, 5, 6)),  # noqa: DTZ001  that is what is wrong with it
        outcome(2),
    ]
    await journal.append(records)
    await journal.rotate()
    (segment,) = journal.sealed()
    strange = [
        b"\xc1",
        b"\x93\xa7outcome\x01\x02",
        encode(outcome(1)).replace(b"click", b"cl\xffck"),
    ]
    with segment.path.open("ab") as file:
        file.write(b"".join(map(frame, strange)) + frame(encode(outcome(3))))
    await shipper.ship_once()

    assert await values(pool) == [0, 1, 2, 3]
    assert await pool.fetchval("select array_agg(unit) from exposure") == ["good"]
    found = await letters(pool)
    bad = [1, 3, 4, 6, 7, 8, 9, 10]
    assert [ordinal for ordinal, _, _ in found] == [*bad, 12, 13, 14]
    assert [payload for _, _, payload in found] == [*(encode(records[n]) for n in bad), *strange]
    reasons = {ordinal: reason for ordinal, reason, _ in found}
    assert all("U+0000" in reasons[ordinal] for ordinal in (1, 3, 4))
    assert all("not finite" in reasons[ordinal] for ordinal in (6, 7))
    assert "names no unit" in reasons[8]
    assert "-2147483648 <= number <= 2147483647" in reasons[9]
    assert "no offset" in reasons[10]
    assert all(reasons[ordinal] for ordinal in (12, 13, 14))
    assert await pool.fetchval("select records from segment") == 16
    assert shipper.letters == 11
    assert [record.message for record in caplog.records] == ["records set aside"]
    assert journal.sealed() == []


async def test_what_only_postgres_can_refuse_is_found_among_many(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await pool.execute("alter table outcome add check (value <> all('{100, 101, 999}'))")
    await journal.append([outcome(n) for n in range(1_000)])
    await journal.append(
        [outcome(n, uuid4().bytes, units=(("a", "x"), ("b", "y"))) for n in (999, 1_000)]
    )
    await shipper.ship_once()
    assert await values(pool) == [
        *(n for n in range(1_000) if n not in {100, 101, 999}),
        1_000,
        1_000,
    ]
    assert [ordinal for ordinal, _, _ in await letters(pool)] == [100, 101, 999, 1_000]
    assert all("violates check constraint" in reason for _, reason, _ in await letters(pool))


async def test_a_segment_of_nothing_but_poison_goes_through(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await journal.append([outcome(float("nan"))])
    await shipper.ship_once()
    assert await values(pool) == []
    assert len(await letters(pool)) == 1
    assert journal.depth == 0


async def test_days_of_receipt_get_their_partitions(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    days = [NOW, NOW + timedelta(seconds=30), NOW + timedelta(days=400), NOW - timedelta(days=40)]
    await journal.append([outcome(n, received_at=day) for n, day in enumerate(days)])
    await journal.append([exposure(received_at=days[0])])
    await shipper.ship_once()
    rows = await pool.fetch("select tableoid::regclass::text as name from outcome order by value")
    assert [row["name"] for row in rows] == [
        "outcome_20240506",
        "outcome_20240507",
        "outcome_20250610",
        "outcome_20240327",
    ]


async def test_many_routers_meet_a_new_day_at_once(
    pool: asyncpg.Pool, clock: Clock, tmp_path: Path
) -> None:
    journals = [await Journal.open(tmp_path / str(n), clock) for n in range(5)]
    try:
        for number, journal in enumerate(journals):
            await journal.append([outcome(number * 10 + turn) for turn in range(10)])
        await asyncio.gather(
            *(shipper_of(pool, journal, clock).ship_once() for journal in journals)
        )
    finally:
        for journal in journals:
            await journal.close()
    assert await values(pool) == list(range(50))


async def test_the_mark_advances_with_nothing_to_ship_and_never_goes_back(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, clock: Clock
) -> None:
    await shipper.ship_once()
    assert await mark(pool, journal) == shipper.shipped_through == NOW
    clock.pass_time(10)
    await shipper.ship_once()
    assert await mark(pool, journal) == NOW + timedelta(seconds=10)
    clock.pass_time(-60)
    await shipper.ship_once()
    assert await mark(pool, journal) == NOW + timedelta(seconds=10)
    beat = await pool.fetchval("select now() - heartbeat_at from journal")
    assert timedelta(0) <= beat < timedelta(seconds=30)


async def test_what_lies_below_the_mark_was_shipped(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, clock: Clock
) -> None:
    """Also what is appended while a shipment is on its way, and not on disk when it begins."""
    running = asyncio.create_task(shipper.run())
    seen: set[int] = set()
    number = 0
    try:
        async with asyncio.timeout(20):
            while len(seen) < 6:
                clock.pass_time(1)
                waiting = journal.append([outcome(number, received_at=clock())])
                number += 1
                if number % 3:
                    await waiting
                if number % 10:
                    continue
                row = await pool.fetchrow(
                    "select shipped_through, (select count(*) from outcome"
                    " where received_at < shipped_through) as below from journal"
                )
                if row is not None:  # a record was received in each second since
                    seconds = (row["shipped_through"] - NOW).total_seconds()
                    assert row["below"] == max(0, seconds - 1)
                    seen.add(row["below"])
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    await shipper.ship_once()
    assert await values(pool) == list(range(number))
    assert shipper.failures == 0


async def test_a_journal_is_announced_once_and_keeps_its_mark(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, clock: Clock
) -> None:
    await journal.append([outcome(1)])
    clock.pass_time(60)
    await shipper.announce()
    assert await mark(pool, journal) == NOW  # the record that is not shipped holds it back
    clock.pass_time(60)
    await shipper_of(pool, journal, clock).announce()  # the next process on the same folder
    assert await mark(pool, journal) == NOW
    await shipper.ship_once()
    assert await mark(pool, journal) == NOW + timedelta(seconds=120)


async def test_finishing_ships_the_rest_and_withdraws_the_journal(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    await shipper.announce()
    last = journal.append([outcome(1)])
    await shipper.finish()
    assert last.done()
    assert await values(pool) == [1]
    assert await mark(pool, journal) is None


async def test_what_is_sealed_is_shipped_though_the_disk_refuses_more(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper, tmp_path: Path
) -> None:
    await shipper.announce()
    blocker = tmp_path / "journal" / f"{3:020d}.segment"
    blocker.mkdir()
    await journal.append([outcome(1)])
    await journal.rotate()
    await journal.append([outcome(2)])
    with pytest.raises(JournalWriteError):
        await shipper.ship_once()
    assert await values(pool) == [1]
    assert shipper.shipped_through is None
    blocker.rmdir()
    await shipper.ship_once()
    assert await values(pool) == [1, 2]
    assert shipper.shipped_through == NOW


async def test_postgres_gone_and_back(
    servers: LiveServers,
    pool: asyncpg.Pool,
    migrated_url: str,
    journal: Journal,
    shipper: Shipper,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "router.shipper")
    name = urlsplit(migrated_url).path[1:]
    admin = await asyncpg.connect(servers.database_url)
    running = asyncio.create_task(shipper.run())
    try:
        await journal.append([outcome(0)])
        await until(lambda: shipper.records == 1)
        await admin.execute(f'alter database "{name}" allow_connections false')
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
        )
        for number in range(1, 20):
            await journal.append([outcome(number)])
            await asyncio.sleep(0.01)
        await until(lambda: shipper.failures >= 4)
        assert journal.depth > 0
        assert not running.done()
        lines = [record for record in caplog.records if record.message == "shipping failed"]
        assert len(lines) == shipper.failures
        assert [vars(record)["attempt"] for record in lines] == list(range(1, len(lines) + 1))
        waits = [vars(record)["retry_in"] for record in lines]
        assert waits[-1] > waits[0]
        assert max(waits) <= 0.2
        await admin.execute(f'alter database "{name}" allow_connections true')
        await until(lambda: shipper.records == 20)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await admin.close()
    assert await values(pool) == list(range(20))


async def test_cut_off_in_the_middle_of_a_segment(
    pool: asyncpg.Pool, journal: Journal, shipper: Shipper
) -> None:
    """Half of it is written when the connection goes: nothing of it stays, then all of it."""
    await journal.append([exposure(), outcome(1, uuid4().bytes), outcome(2)])
    # Without its partition it would wait for the lock before it has written anything.
    await pool.execute("select ensure_day($1)", NOW.date())
    async with pool.acquire() as other, other.transaction():
        await other.execute("lock table outcome in access exclusive mode")
        shipping = asyncio.create_task(shipper.ship_once())
        async with asyncio.timeout(10):
            while not await pool.fetchval(CUT_WHO_WAITS):  # noqa: ASYNC110  Postgres tells nobody
                await asyncio.sleep(0.01)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await shipping
    assert await values(pool) == []
    assert await pool.fetchval("select count(*) from segment") == 0
    await shipper.ship_once()
    assert await values(pool) == [1, 2]
    assert await pool.fetchval("select count(*) from exposure") == 1


async def test_all_who_see_a_new_day_at_once_have_it(pool: asyncpg.Pool) -> None:
    for number in range(20):
        day = NOW.date() + timedelta(days=100 + number)
        await asyncio.gather(*(pool.execute("select ensure_day($1)", day) for _ in range(4)))
        assert await pool.fetchval("select to_regclass($1)", f"outcome_{day:%Y%m%d}") is not None


async def test_it_knows_how_far_its_clock_is_from_that_of_the_database(
    pool: asyncpg.Pool, journal: Journal
) -> None:
    hour = timedelta(hours=1)
    ahead = shipper_of(pool, journal, lambda: datetime.now(UTC) + hour)
    await ahead.announce()
    assert abs(ahead.clock_offset - hour) < timedelta(seconds=5)


async def test_a_slow_answer_is_no_news_of_a_clock(pool: asyncpg.Pool, journal: Journal) -> None:
    """The database tells its time at some moment between a question and its answer."""
    began = datetime.now(UTC)
    readings = iter([began, began, began + timedelta(seconds=9)])
    slow = shipper_of(pool, journal, lambda: next(readings))
    await slow.announce()
    assert slow.clock_offset == timedelta(0)
