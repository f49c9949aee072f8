"""Retention: raw events go by the day, and what they came to stays."""

from collections.abc import AsyncIterator
from datetime import timedelta
from unittest.mock import patch

import asyncpg
import pytest
from redis.asyncio import Redis

from analysis.upkeep.retention import Retention
from analysis.upkeep.verify import Verdict, verify
from experiments.records import ExperimentRecord
from tests.service.loop import START, Service, after, definition, mean, metric

DAY = 86_400
KEPT = timedelta(days=8)
FIRST_DAY = "20260302"


@pytest.fixture
async def keeping(pool: asyncpg.Pool, redis_url: str) -> AsyncIterator[Service]:
    """The loop, with raw events that are kept for 8 days."""
    async with Redis.from_url(redis_url) as redis:
        yield Service(pool, redis, KEPT)


@pytest.fixture
async def shop(keeping: Service) -> ExperimentRecord:
    """A run with units that met variants and bought something on the first day."""
    record = await keeping.begin(
        definition(
            "x",
            metric("click", window="20d"),
            mean("spent", event="buy", window="20d"),
            mean("latest", event="buy", aggregate="last", window="20d"),
        )
    )
    for number in range(6):
        unit = f"u{number}"
        await keeping.ship(
            [
                keeping.exposure(record, unit, "ab"[number % 2], after(number)),
                keeping.outcome("buy", unit, after(number + 1), 1.5 + number),
            ]
        )
    await keeping.settle(1)
    return record


async def partitions(service: Service) -> set[str]:
    """The days that have raw tables."""
    rows = await service.fetch(
        "select right(c.relname, 8) as day from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'outcome'::regclass"
    )
    return {row["day"] for row in rows}


async def segments(service: Service) -> list[int]:
    """The numbers of the segments that are known."""
    return [row["number"] for row in await service.fetch("select number from segment order by 1")]


async def verified(service: Service) -> Verdict:
    """What verify finds, which is no difference."""
    async with service.pool.acquire() as connection:
        verdict = await verify(connection, None, None, lambda _: None)
    assert verdict.named == ()
    return verdict


async def spent(service: Service) -> dict[str, tuple[int, float]]:
    """Units and what they spent on average, by variant."""
    rows = await service.fetch(
        """select a.variant, c.n, c.mean[1] as mean
           from cell c join arm a on a.id = c.arm join run_metric m on m.id = c.metric
           where m.key = 'spent' and c.block = -1 and c.n > 0"""
    )
    return {row["variant"]: (row["n"], row["mean"]) for row in rows}


async def pass_days(service: Service, days: float) -> None:
    """Let days pass; then the controller does all that is due, some of it a minute later."""
    await service.settle(days * DAY)
    await service.settle(61)


async def test_a_day_is_dropped_once_it_is_whole_and_old_enough(
    keeping: Service, shop: ExperimentRecord
) -> None:
    keeping.clock.now = START.replace(hour=23, minute=59, second=0) + KEPT
    await keeping.settle(1)
    assert FIRST_DAY in await partitions(keeping)
    await keeping.settle(60)
    assert FIRST_DAY not in await partitions(keeping)


async def test_without_a_setting_nothing_is_dropped(service: Service) -> None:
    record = await service.begin(definition("x", metric("click")))
    await service.ship([service.exposure(record, "u", "a", after(1))])
    await pass_days(service, 1_000)
    assert FIRST_DAY in await partitions(service)


async def test_tomorrow_has_its_partitions_today(service: Service) -> None:
    await service.tick()
    assert await partitions(service) == {FIRST_DAY, "20260303"}


async def test_what_dropped_events_came_to_stays_and_goes_on(
    keeping: Service, shop: ExperimentRecord
) -> None:
    before = await spent(keeping)
    await pass_days(keeping, 10)
    assert await keeping.fetch("select from outcome union all select from exposure") == []
    assert await spent(keeping) == before
    found = await verified(keeping)
    assert found.units == 6
    assert any("received before 2026-03-04 were dropped" in line for line in found.lines())
    await keeping.ship([keeping.outcome("buy", "u0", keeping.clock.now, 30.0)])
    await keeping.tick()
    (units, average), (_, old) = (await spent(keeping))["a"], before["a"]
    assert units == 3
    assert average == pytest.approx(old + 10.0)
    await verified(keeping)


async def test_a_unit_whose_events_were_dropped_moves_to_an_earlier_exposure(
    keeping: Service, shop: ExperimentRecord
) -> None:
    await pass_days(keeping, 10)
    await keeping.ship([keeping.exposure(shop, "u1", "a", after(-60))])
    await keeping.tick()
    assert await spent(keeping) == {"a": (4, 3.25), "b": (2, 5.5)}
    assert (await keeping.report("x")).several_variants == 1
    await verified(keeping)


async def test_records_that_come_in_after_their_day_was_dropped_still_count(
    keeping: Service, shop: ExperimentRecord
) -> None:
    late = keeping.outcome("buy", "u0", after(50), 30.0)
    stranger = keeping.exposure(shop, "new", "a", after(51))
    await pass_days(keeping, 10)
    assert FIRST_DAY not in await partitions(keeping)
    await keeping.ship([late, stranger])
    await keeping.settle(61)
    assert (await spent(keeping))["a"] == (4, (1.5 + 3.5 + 5.5 + 30) / 4)
    await pass_days(keeping, 1)
    assert FIRST_DAY not in await partitions(keeping)
    assert (await verified(keeping)).units == 7


async def test_a_metric_that_joins_counts_the_units_whose_events_are_all_there(
    keeping: Service, shop: ExperimentRecord
) -> None:
    keeping.clock.now = after(6 * DAY)
    for number, days in enumerate((1, 5, 6)):
        at = after(days * DAY)
        unit = f"new{number}"
        await keeping.ship(
            [keeping.exposure(shop, unit, "a", at), keeping.outcome("buy", unit, at, 2.0)]
        )
    await pass_days(keeping, 6)
    await keeping.amend("x", {"metrics": [mean("orders", event="buy", aggregate="count")]})
    await keeping.tick()
    [row] = await keeping.fetch("select since from run_metric where key = 'orders'")
    assert row["since"] == START.replace(hour=0, day=4) + timedelta(minutes=5)
    report = await keeping.report("x")
    assert report.metrics[0].since == row["since"]
    assert any(
        note.startswith("orders counts the units enrolled since 2026-03-04 00:05 UTC")
        for note in report.notes
    )
    cells = "select n from cell c join run_metric m on m.id = c.metric where m.key = 'orders'"
    assert {row["n"] for row in await keeping.fetch(cells + " and c.block = -1")} == {2}
    await keeping.ship([keeping.exposure(shop, "new1", "b", after(100))])
    await keeping.tick()
    assert {row["n"] for row in await keeping.fetch(cells + " and c.block = -1")} == {1}
    await verified(keeping)


@pytest.mark.parametrize(
    "broken",
    [
        "analysis.upkeep.retention.open_with",
        "analysis.folding.values.States.keep",
        "analysis.upkeep.retention.meet",
        "analysis.upkeep.retention._drop",
    ],
)
async def test_dropping_that_fails_in_the_middle_loses_and_doubles_nothing(
    keeping: Service, shop: ExperimentRecord, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.upkeep.retention.ROWS", 2)
    before = await spent(keeping)
    keeping.clock.advance(10 * DAY)
    retention = Retention(KEPT)
    for _ in range(20):
        with patch(broken, side_effect=RuntimeError):
            try:
                await _step(keeping, retention)
            except RuntimeError:
                await verified(keeping)
        await _step(keeping, retention)
        await verified(keeping)
    assert FIRST_DAY not in await partitions(keeping)
    assert await spent(keeping) == before


async def _step(service: Service, retention: Retention) -> None:
    async with service.pool.acquire() as connection, connection.transaction():
        await retention.step(connection, service.clock.now)


async def test_a_unit_keeps_what_it_was_first_whichever_of_its_exposures_is_dropped(
    keeping: Service, shop: ExperimentRecord
) -> None:
    await keeping.ship([keeping.exposure(shop, "u0", "b", after(9))])
    await keeping.settle(5 * DAY)
    await keeping.ship([keeping.exposure(shop, "u2", "b", after(5 * DAY))])
    await pass_days(keeping, 6)
    rows = await keeping.fetch(
        "select unit, opening_several, several from enrolment where several order by unit"
    )
    assert [tuple(row) for row in rows] == [("u0", True, True), ("u2", False, True)]
    await verified(keeping)


async def test_a_day_with_events_that_are_not_folded_stays(
    keeping: Service, shop: ExperimentRecord
) -> None:
    await keeping.ship([keeping.outcome("buy", "u0", after(50), 30.0)])
    keeping.clock.advance(10 * DAY)
    retention = Retention(KEPT)
    for _ in range(5):
        await _step(keeping, retention)
    assert [row["value"] for row in await keeping.fetch("select value from outcome")] == [30.0]
    assert FIRST_DAY in await partitions(keeping)
    await pass_days(keeping, 1)
    assert FIRST_DAY not in await partitions(keeping)
    await verified(keeping)


async def test_whoever_reads_raw_events_is_not_disturbed_and_disturbs_nobody(
    keeping: Service, shop: ExperimentRecord
) -> None:
    async with keeping.pool.acquire() as reader, reader.transaction():
        await reader.execute("lock table exposure, outcome in access share mode")
        await pass_days(keeping, 10)
        assert FIRST_DAY in await partitions(keeping)
        await keeping.ship([keeping.outcome("buy", "u0", keeping.clock.now, 1.0)])
        await keeping.tick()
    await keeping.settle(61)
    assert FIRST_DAY not in await partitions(keeping)


async def test_segments_and_dead_letters_of_dropped_days_are_forgotten(
    keeping: Service, shop: ExperimentRecord
) -> None:
    await keeping.execute(
        "insert into dead_letter (segment, ordinal, reason, record)"
        " select min(id), 0, 'a test', '' from segment"
    )
    await pass_days(keeping, 10)
    assert await segments(keeping) == [6]
    await keeping.ship([keeping.outcome("buy", "u0", keeping.clock.now, 1.0)])
    await pass_days(keeping, 10)
    assert await segments(keeping) == [7]
    assert await keeping.fetch("select from dead_letter") == []
    await verified(keeping)
