"""Breakdowns through the real loop: units are counted in the segments that they came with."""

import random
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from analysis.inference.segments import LONGEST_VALUE, MOST_ATTRIBUTES, MOST_VALUES, Segment
from analysis.reports.breakdowns import Breakdown, breakdowns
from analysis.reports.facts import read_facts
from analysis.upkeep.verify import verify
from experiments import store
from experiments.records import ExperimentRecord
from router.records import Record
from tests.service.loop import SHOP, Service, after, definition, mean, metric
from tests.service.recount import check
from tests.service.test_erase import erased
from tests.service.test_fold import fold_all

DE, AT = Segment("country", "DE"), Segment("country", "AT")
OTHER = Segment("country", None, other=True)


async def read(service: Service, key: str = "x") -> list[Breakdown]:
    """The breakdowns of an experiment's report."""
    async with service.pool.acquire() as connection:
        record = await store.get_experiment(connection, SHOP, key)
        assert record is not None
        return list(breakdowns(await read_facts(connection, record)))


async def units(service: Service, metric_key: str = "click") -> dict[Segment, tuple[int, int]]:
    """How many units of a and of b each segment has in the report."""
    return {
        c.segment: (c.units_control, c.units_treatment)
        for found in await read(service)
        if found.metric == metric_key
        for c in found.segments
    }


async def is_right(service: Service) -> None:
    """All that is kept equals what raw events say, counted twice by other means."""
    async with service.pool.acquire() as connection:
        await check(connection)
        verdict = await verify(connection, None, None, lambda _: None)
    assert verdict.found == 0, verdict.lines()


def met(
    service: Service, record: ExperimentRecord, unit: str, variant: str, second: float, **of: Any
) -> Record:
    """A unit meets a variant, with attributes."""
    return service.exposure(record, unit, variant, after(second), attributes=of or None)


@pytest.fixture
async def record(service: Service) -> ExperimentRecord:
    """An experiment that records where units are from."""
    return await service.begin(
        definition(
            "x",
            metric("click", "primary", window="30s"),
            mean("spent", event="buy", window="30s", covariate="20s"),
            record=["country", "plan"],
        )
    )


async def test_the_segments_of_an_arm_add_up_to_it(
    service: Service, record: ExperimentRecord
) -> None:
    source = random.Random(1)  # noqa: S311 - a simulation
    for part in range(3):
        records: list[Record] = []
        for number in range(60):
            unit, second = f"u{part}-{number}", 30.0 * part + number / 4
            country = source.choice(["DE", "AT", "FR"])
            records.append(met(service, record, unit, source.choice("ab"), second, country=country))
            if source.random() < 0.5:
                records.append(service.outcome("click", unit, after(second + 1)))
                records.append(
                    service.outcome("buy", unit, after(second + 2), source.gauss(20.0, 5.0))
                )
        await fold_all(service, records)
        await service.settle(30)
    await is_right(service)
    async with service.pool.acquire() as connection:
        facts = await read_facts(connection, record)
    for known in facts.metrics.values():
        for name in ("everyone", "finished"):
            whole = getattr(known, name)
            parts = [getattr(found, name) for found in known.segments.values()]
            assert len(parts) == 3
            assert sum(whole.units.values()) > 0
            for variant, n in whole.units.items():
                assert n == sum(part.units.get(variant, 0) for part in parts)


async def test_a_unit_is_in_the_segment_of_its_first_exposure_whenever_that_comes(
    service: Service, record: ExperimentRecord
) -> None:
    later = [
        met(service, record, "u1", "a", 10, country="DE"),
        met(service, record, "u2", "b", 10, country="DE"),
        service.outcome("click", "u1", after(11)),
        service.outcome("buy", "u1", after(6), 12.0),
    ]
    await fold_all(service, later)
    assert await units(service) == {DE: (1, 1)}
    earlier = [
        met(service, record, "u1", "b", 5, country="AT"),
        met(service, record, "u2", "b", 20, country="FR"),
    ]
    await fold_all(service, earlier)
    assert await units(service) == {AT: (0, 1), DE: (0, 1)}
    assert await units(service, "spent") == {AT: (0, 1), DE: (0, 1)}
    await is_right(service)
    await fold_all(service, [met(service, record, "u2", "b", 1)])
    assert await units(service) == {AT: (0, 1)}
    await is_right(service)


async def test_an_erased_unit_leaves_its_segment_and_a_value_that_only_it_had_is_forgotten(
    service: Service, record: ExperimentRecord
) -> None:
    records = [
        met(service, record, "u1", "a", 1, country="DE", plan="anna@example.org"),
        met(service, record, "u2", "b", 2, country="DE", plan="free"),
        service.outcome("click", "u1", after(3)),
    ]
    await fold_all(service, records)
    await service.settle(120)
    await erased(service, ("user", "u1"))
    assert await units(service) == {DE: (0, 1), Segment("plan", "free"): (0, 1)}
    kept = {row["value"] for row in await service.fetch("select value from unit_segment")}
    assert kept == {'"DE"', None, '"free"'}
    await is_right(service)
    again = [met(service, record, "u3", "a", 200, country="DE", plan="anna@example.org")]
    await fold_all(service, again)
    assert (await units(service))[Segment("plan", "anna@example.org")] == (1, 0)
    await is_right(service)


async def test_a_value_is_forgotten_that_an_erased_unit_had_before_it_moved(
    service: Service, record: ExperimentRecord
) -> None:
    """An earlier exposure came in later, and had nothing to tell."""
    records = [
        met(service, record, "u1", "a", 5, plan="anna@example.org"),
        met(service, record, "u2", "b", 5, plan="free"),
    ]
    await fold_all(service, records, [met(service, record, "u1", "a", 1)])
    await erased(service, ("user", "u1"))
    kept = {row["value"] for row in await service.fetch("select value from unit_segment")}
    assert kept == {None, '"free"'}
    await is_right(service)


async def test_equal_numbers_are_one_value_however_they_were_written(
    service: Service, record: ExperimentRecord
) -> None:
    values = [1, 1.0, 10, 1e1, 0, -0.0, 2.5]
    records = [
        met(service, record, f"u{number}", "a", number, country=value)
        for number, value in enumerate(values)
    ]
    await fold_all(service, records[:1], records[1:4], records[4:])
    assert await units(service) == {
        Segment("country", "1", type="number"): (2, 0),
        Segment("country", "10", type="number"): (2, 0),
        Segment("country", "0", type="number"): (2, 0),
        Segment("country", "2.5", type="number"): (1, 0),
    }
    await is_right(service)


async def test_values_are_told_apart_by_what_they_are(
    service: Service, record: ExperimentRecord
) -> None:
    values = ["1", 1, True, "true", 1.5, "", "ü☃", None, [1], {"a": 1}]
    records = [
        met(service, record, f"u{number}", "a", number, country=value)
        for number, value in enumerate(values)
    ]
    await fold_all(service, records)
    assert await units(service) == {
        Segment("country", "1"): (1, 0),
        Segment("country", "1", type="number"): (1, 0),
        Segment("country", "true", type="boolean"): (1, 0),
        Segment("country", "true"): (1, 0),
        Segment("country", "1.5", type="number"): (1, 0),
        Segment("country", ""): (1, 0),
        Segment("country", "ü☃"): (1, 0),
    }
    [click, _] = await read(service)
    assert click.missing == {"a": 3, "b": 0}
    await is_right(service)


async def test_values_beyond_the_first_ones_and_long_ones_are_together(
    service: Service, record: ExperimentRecord
) -> None:
    long = "x" * (LONGEST_VALUE + 1)
    values = [long, *(f"v{number}" for number in range(MOST_VALUES + 5)), "v0", "v24", "other"]
    records = [
        met(service, record, f"u{number}", "b", number, country=value)
        for number, value in enumerate(values)
    ]
    await fold_all(service, records[:10], records[10:])
    found = await units(service)
    assert len(found) == MOST_VALUES + 1
    assert found[Segment("country", "v0")] == (0, 2)
    assert found[OTHER] == (0, 8)
    await is_right(service)


async def test_a_run_is_broken_down_by_the_first_attributes_that_it_records(
    service: Service,
) -> None:
    names = [f"n{number}" for number in range(MOST_ATTRIBUTES + 2)]
    record = await service.begin(definition("x", metric("click"), record=names[:3]))
    await fold_all(service, [met(service, record, "u1", "a", 1, n0="x", n5="x")])
    record = await service.amend("x", {"record": names[::-1]})
    await fold_all(service, [met(service, record, "u2", "a", 2, **dict.fromkeys(names, "y"))])
    known = [row["name"] for row in await service.fetch("select name from run_attribute")]
    assert known == ["n0", "n1", "n2", "n5"]
    found = await units(service)
    assert found[Segment("n0", "x")] == (1, 0)
    assert Segment("n5", "x") not in found
    assert found[Segment("n5", "y")] == (1, 0)


async def test_a_metric_that_joins_is_broken_down_for_those_who_were_there_before(
    service: Service, record: ExperimentRecord
) -> None:
    records = [
        met(service, record, "u1", "a", 1, country="DE"),
        met(service, record, "u2", "b", 2, country="AT"),
        service.outcome("look", "u1", after(3)),
    ]
    await fold_all(service, records)
    await service.amend(
        "x", {"metrics": [metric("click", "primary", window="30s"), metric("look", window="10s")]}
    )
    await service.tick()
    assert await units(service, "look") == {DE: (1, 0), AT: (0, 1)}
    await is_right(service)


async def test_epochs_are_not_pooled_within_a_segment(
    service: Service, record: ExperimentRecord
) -> None:
    """Simpson's paradox: in each epoch a and b are alike."""
    records: list[Record] = []
    for epoch, (n_a, n_b, rate) in enumerate([(200, 800, 0.8), (800, 200, 0.2)], 1):
        if epoch == 2:
            record = await service.allocate("x", {"a": 0.8, "b": 0.2})
        for variant, n in (("a", n_a), ("b", n_b)):
            for number in range(n):
                unit, second = f"{variant}{epoch}-{number}", 1.0 * epoch + number / 1000
                records.append(met(service, record, unit, variant, second, country="DE"))
                if number < rate * n:
                    records.append(service.outcome("click", unit, after(second)))
    await fold_all(service, records)
    [click, _] = await read(service)
    [germany] = click.segments
    assert germany.fixed.difference == pytest.approx(0.0, abs=1e-12)
    assert germany.fixed.epochs_used == 2
    await is_right(service)


async def test_an_outlier_that_is_erased_leaves_the_digits_of_its_segment(
    service: Service, record: ExperimentRecord
) -> None:
    records: list[Record] = []
    for number, value in enumerate([1e30, 1.0, 2.0, 4.0]):
        records.append(met(service, record, f"u{number}", "a", number, country="DE"))
        records.append(service.outcome("buy", f"u{number}", after(number + 1), value))
    await fold_all(service, records)
    await erased(service, ("user", "u0"))
    rows = await service.fetch(
        """select c.mean[1] as mean from cell c join segment_arm s on s.id = c.arm
           join run_metric m on m.id = c.metric where m.key = 'spent' and c.block = -1"""
    )
    assert [row["mean"] for row in rows] == [pytest.approx(7 / 3)]
    await is_right(service)


async def test_what_nobody_records_costs_no_row(service: Service) -> None:
    record = await service.begin(definition("x", metric("click")))
    await fold_all(service, [met(service, record, "u1", "a", 1, country="DE")])
    for table in ("run_attribute", "unit_segment", "profile", "segment_arm"):
        [row] = await service.fetch(f"select count(*) as n from {table}")  # noqa: S608 - ours
        assert row["n"] == 0
    assert await read(service) == []


async def test_of_two_exposures_that_differ_in_attributes_only_one_counts(
    service: Service, record: ExperimentRecord
) -> None:
    for country in ("DE", "AT", None, "FR"):
        await fold_all(service, [met(service, record, "u1", "a", 1, country=country)])
    assert await units(service) == {DE: (1, 0)}
    await is_right(service)


async def test_segments_stay_when_raw_events_are_dropped(
    pool: asyncpg.Pool, redis_url: str
) -> None:
    async with Redis.from_url(redis_url) as redis:
        service = Service(pool, redis, keep=timedelta(days=1))
        record = await service.begin(
            definition("x", metric("click", window="7d"), record=["country"])
        )
        records = [
            met(service, record, "u1", "a", 1, country="DE"),
            met(service, record, "u2", "b", 2, country="AT"),
            service.outcome("click", "u1", after(3)),
        ]
        await fold_all(service, records)
        for _ in range(5):
            await service.settle(86_400)
        [left] = await service.fetch("select count(*) as n from exposure")
        assert left["n"] == 0
        earlier = service.outcome("click", "u2", after(4))
        await fold_all(service, [earlier, met(service, record, "u2", "b", 1, country="DE")])
        assert await units(service) == {DE: (1, 1)}
        async with pool.acquire() as connection:
            verdict = await verify(connection, None, None, lambda _: None)
        assert verdict.found == 0, verdict.lines()


async def test_a_run_that_had_units_before_there_were_breakdowns_has_none(
    service: Service,
) -> None:
    record = await service.begin(definition("x", metric("click"), record=["country"]))
    await service.execute("update run set broken_down = false")
    await fold_all(service, [met(service, record, "u1", "a", 1, country="DE")])
    assert await read(service) == []
    await is_right(service)


WRONG = {
    "the segments of a unit": "update enrolment set profile = 0 where unit = 'u1'",
    "the units of a segment": "update segment_arm set units = units + 1",
    "a cell of a segment": """
        update cell set n = n + 1 where arm in (select id from segment_arm) and block = -1""",
    "the sums of a segment": "delete from metric_total where segment <> 0",
}


@pytest.mark.parametrize("what", WRONG)
async def test_verify_says_what_is_wrong(
    service: Service, record: ExperimentRecord, what: str
) -> None:
    records = [
        met(service, record, "u1", "a", 1, country="DE"),
        met(service, record, "u2", "b", 2, country="AT"),
    ]
    await fold_all(service, records)
    await service.execute(WRONG[what])
    async with service.pool.acquire() as connection:
        verdict = await verify(connection, None, None, lambda _: None)
    assert verdict.found > 0
    assert "segment" in str(verdict.named[0])
