"""Erasing units: nothing is left of them, and what is kept is what the others make alone."""

import asyncio
import contextlib
import random
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import analysis.folding.backfill
from analysis.control.intake import take_in
from analysis.folding.backfill import backfill
from analysis.upkeep.erase import Erased, Order, erase
from analysis.upkeep.retention import Retention
from analysis.upkeep.verify import verify
from experiments.projects import unit_key
from experiments.records import ExperimentRecord
from router.journal import Journal
from router.records import Record, encode, names_unit
from router.shipper import Pace, Shipper
from tests.service.loop import SHOP, Service, after, definition, mean, metric
from tests.service.test_fold import STAGING, Mix, counted
from tests.service.test_verify import METRICS

SECRET = bytes(range(32))
TABLES = """
    select c.relname from pg_class c
    where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
"""


async def erased(
    service: Service, *units: tuple[str, str], project: str = SHOP, reason: str = "a request"
) -> Erased:
    """What the erasure of units finds; it is done."""
    async with service.pool.acquire() as connection, connection.transaction():
        key = await unit_key(connection, project, lambda size: SECRET[:size])
        order = Order(project, units, "tester", reason)
        return await erase(connection, order, key, service.clock, names_unit)


async def traces(service: Service, unit: str) -> dict[str, int]:
    """The tables that hold a text, and in how many rows."""
    found: dict[str, int] = {}
    for (table,) in await service.fetch(TABLES):
        query = f"select count(*) from {table} t where position($1 in t::text) > 0"  # noqa: S608
        [row] = await service.fetch(query, unit)
        if row["count"]:
            found[table] = row["count"]
    return found


class MixWithErasures(Mix):
    """A random life in which units ask to be forgotten."""

    async def pass_time(self) -> None:
        """Time passes, and somebody wants to be forgotten."""
        await super().pass_time()
        project = self.random.choice([SHOP, SHOP, STAGING])
        units = {
            self.random.choice(["user", "session"]): self._unit()
            for _ in range(self.random.choice([1, 1, 2]))
        }
        await erased(self.service, *units.items(), project=project)
        for table in ("exposure", "outcome", "enrolment"):
            left = await self.service.fetch(
                f"select from {table} where project = $1"  # noqa: S608 - ours
                " and (unit_type, unit) in (select * from unnest($2::text[], $3::text[]))",
                project,
                [*units],
                [*units.values()],
            )
            assert left == []
        await counted(self.service)


@pytest.mark.parametrize("seed", range(12))
async def test_what_is_left_is_what_the_others_make(service: Service, seed: int) -> None:
    mix = MixWithErasures(service, seed)
    await mix.begin()
    await mix.live(steps=6)


@pytest.fixture
async def shop(service: Service) -> ExperimentRecord:
    """A running experiment with a proportion and a sum over windows of 30 s."""
    return await service.begin(
        definition("x", metric("click", window="30s"), mean("spent", event="buy", window="30s"))
    )


async def live(service: Service, shop: ExperimentRecord, units: int = 6) -> None:
    """Units named unit-0, unit-1, ... meet a and b in turn, click and buy; all is folded."""
    records: list[Record] = []
    for number in range(units):
        unit, at = f"unit-{number}", after(number)
        records.append(service.exposure(shop, unit, "ab"[number % 2], at))
        records.append(service.outcome("click", unit, at))
        records.append(service.outcome("buy", unit, at, 10.0 + number))
    await service.ship(records)
    await service.shipped()
    await service.tick()


async def test_a_unit_leaves_no_trace(service: Service, shop: ExperimentRecord) -> None:
    await live(service, shop)
    assert await traces(service, "unit-3") != {}
    found = await erased(service, ("user", "unit-3"), reason="request 12 of the shop")
    assert found == Erased(exposures=1, outcomes=2, enrolments=1, dead_letters=0)
    assert await traces(service, "unit-3") == {}
    [audit] = await service.fetch("select * from erasure")
    assert (audit["project"], audit["unit_type"]) == (SHOP, "user")
    assert (audit["actor"], audit["reason"]) == ("tester", "request 12 of the shop")
    assert audit["erased_at"] == service.clock.now
    assert len(audit["unit_hash"]) == 32
    assert b"unit-3" not in audit["unit_hash"]
    await counted(service)


async def test_the_report_is_that_of_the_others(service: Service, shop: ExperimentRecord) -> None:
    await live(service, shop)
    await service.settle()
    before = await service.report("x")
    await erased(service, ("user", "unit-5"))
    await counted(service)
    after_it = await service.report("x")
    assert before.units == {"a": 3, "b": 3}
    assert after_it.units == {"a": 3, "b": 2}


async def test_erasing_again_finds_nothing(service: Service, shop: ExperimentRecord) -> None:
    await live(service, shop)
    await erased(service, ("user", "unit-3"))
    assert await erased(service, ("user", "unit-3")) == Erased()
    assert len(await service.fetch("select from erasure")) == 2
    assert await erased(service, ("user", "nobody")) == Erased()
    await counted(service)


async def test_only_the_unit_that_is_named_is_erased(
    service: Service, shop: ExperimentRecord
) -> None:
    staging = await service.begin(definition("x", metric("click", window="30s")), STAGING)
    both = (("user", "42"), ("session", "42"))
    await service.ship(
        [
            service.exposure(shop, "42", "a", after(0)),
            service.exposure(staging, "42", "a", after(0)),
            service.outcome("click", both, after(1)),
            service.outcome("click", "42", after(1), project=STAGING),
        ]
    )
    await service.tick()
    assert await erased(service, ("user", "42")) == Erased(1, 1, 1, 0)
    rows = await service.fetch("select project, unit_type, unit from outcome order by project")
    assert [tuple(row) for row in rows] == [(SHOP, "session", "42"), (STAGING, "user", "42")]
    [row] = await service.fetch("select project from enrolment")
    assert row["project"] == STAGING
    await counted(service)


async def test_several_types_are_erased_at_once(service: Service, shop: ExperimentRecord) -> None:
    await live(service, shop)
    both = (("user", "unit-1"), ("session", "s-1"))
    await service.ship([service.outcome("click", both, after(1))])
    assert await erased(service, *both) == Erased(1, 4, 1, 0)
    rows = await service.fetch("select unit_type, counts ->> 'outcomes' as n from erasure")
    assert {row["unit_type"]: row["n"] for row in rows} == {"user": "3", "session": "1"}


async def test_a_dead_letter_goes_with_its_unit(service: Service, shop: ExperimentRecord) -> None:
    await live(service, shop)
    mine = service.outcome("click", (("session", "s"), ("user", "unit-3")), after(1))
    records = [
        encode(mine),
        encode(service.outcome("unit-3", "unit-33", after(1))),
        encode(service.outcome("click", "unit-3", after(1), project=STAGING)),
        encode(service.exposure(shop, "unit-3", "a", after(1))),
        encode(mine).replace(b"click", b"cl\xffck"),
        b"\xc1",
    ]
    for number, record in enumerate(records):
        await service.execute("insert into dead_letter values (1, $1, 'bad', $2)", number, record)
    assert (await erased(service, ("user", "unit-3"))).dead_letters == 3
    left = await service.fetch("select ordinal from dead_letter order by ordinal")
    assert [row["ordinal"] for row in left] == [1, 2, 5]


async def test_a_unit_that_comes_again_is_a_new_one(
    service: Service, shop: ExperimentRecord
) -> None:
    await live(service, shop)
    await erased(service, ("user", "unit-3"))
    service.clock.advance(10)
    again = service.exposure(shop, "unit-3", "a", after(40))
    await service.ship([again, service.outcome("click", "unit-3", after(41))])
    await service.tick()
    [row] = await service.fetch("select ordinal, at from enrolment where unit = 'unit-3'")
    assert (row["ordinal"], row["at"]) == (6, after(40)), "an ordinal is given once"
    [run] = await service.fetch("select enrolments, erased from run")
    assert (run["enrolments"], run["erased"]) == (7, 1)
    await counted(service)


async def test_an_erased_unit_is_no_late_change(service: Service, shop: ExperimentRecord) -> None:
    await live(service, shop)
    await service.settle(1_000)
    assert await service.fetch("select from cell where block > 0") == []
    await erased(service, ("user", "unit-3"))
    rows = await service.fetch("select distinct late from run_metric")
    assert [row["late"] for row in rows] == [0]
    await counted(service)


async def test_an_outlier_takes_no_digits_of_the_others_with_it(
    service: Service, shop: ExperimentRecord
) -> None:
    await live(service, shop)
    await service.ship(
        [
            service.exposure(shop, "whale", "a", after(1)),
            service.outcome("buy", "whale", after(2), 1e30),
        ]
    )
    await service.tick()
    await erased(service, ("user", "whale"))
    await counted(service)


async def test_a_unit_leaves_while_a_metric_is_filled_in(
    service: Service, shop: ExperimentRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live(service, shop)
    monkeypatch.setattr(analysis.folding.backfill, "STEP", 3)
    joined = mean("buys", event="buy", aggregate="count", window="30s")
    await service.amend("x", {"metrics": [joined]})
    async with service.pool.acquire() as connection, connection.transaction():
        await take_in(connection, service.clock.now)
        assert await backfill(connection)
    assert await service.fetch("select from run_metric where covered = 3") != []
    for unit in ("unit-1", "unit-4"):
        await erased(service, ("user", unit))
    async with service.pool.acquire() as connection, connection.transaction():
        assert await backfill(connection)
    assert await service.fetch("select from run_metric where covered is not null") == []
    await counted(service)


async def test_an_opening_balance_forgets_the_unit_and_no_other(
    service: Service, shop: ExperimentRecord
) -> None:
    await live(service, shop)
    await service.execute("update unit_value set opening = state")
    await erased(service, ("user", "unit-3"))
    rows = await service.fetch(
        """select m.key, v.opening[1:6] as opening
           from unit_value v join run_metric m on m.id = v.metric order by m.key"""
    )
    assert [(row["key"], row["opening"]) for row in rows] == [
        ("click", [1, 1, 1, 0, 1, 1]),
        ("spent", [10, 11, 12, 0, 14, 15]),
    ]


async def test_histograms_and_sums_are_those_of_the_others(service: Service) -> None:
    record = await service.begin(definition("x", *METRICS))
    for place in range(20):
        unit, at = f"unit-{place}", after(place)
        records: list[Record] = [service.exposure(record, unit, "ab"[place % 2], at)]
        records += [service.outcome("buy", unit, at, 1.5**place)] * (place % 3)
        await service.ship(records)
    await service.settle(25)
    for place in (0, 3, 4, 19):
        await erased(service, ("user", f"unit-{place}"))
        assert await differences(service) == []
    await service.settle(1_000)
    for place in (1, 2, 5, 18):
        await erased(service, ("user", f"unit-{place}"))
        assert await differences(service) == []


async def test_a_unit_whose_raw_events_were_dropped_leaves_the_moments_too(
    service: Service, shop: ExperimentRecord
) -> None:
    await live(service, shop)
    service.clock.advance(5 * 86_400)
    later = [service.outcome("buy", f"unit-{number}", after(20), 7.0) for number in (2, 3, 4)]
    await service.ship(later)
    await service.tick()
    retention = Retention(timedelta(days=2))
    more = True
    while more:
        async with service.pool.acquire() as connection, connection.transaction():
            more = await retention.step(connection, service.clock.now)
    assert await service.fetch("select from exposure") == []
    assert await erased(service, ("user", "unit-3")) == Erased(outcomes=1, enrolments=1)
    assert await traces(service, "unit-3") == {}
    assert await differences(service) == []
    report = await service.report("x")
    assert report.units == {"a": 3, "b": 2}


async def differences(service: Service) -> list[str]:
    """What `turnout verify` finds wrong."""
    async with service.pool.acquire() as connection:
        verdict = await verify(connection, None, None, lambda _: None)
    assert verdict.runs > 0
    return [str(difference) for difference in verdict.named]


async def test_units_are_erased_while_others_ship_and_fold(
    service: Service, shop: ExperimentRecord, tmp_path: Path
) -> None:
    """Whichever comes first: of what was received before its erasure nothing is left, and all that
    was received after it is there."""
    generator = random.Random(7)  # noqa: S311 - a simulation
    last_erased: dict[str, datetime] = {}
    sent: list[tuple[str, datetime]] = []
    done = asyncio.Event()

    def now() -> datetime:
        service.clock.advance(0.001)
        return service.clock.now

    async def route(journal: Journal, shipper: Shipper) -> None:
        for _ in range(40):
            records: list[Record] = []
            received_at = now()
            for _ in range(40):
                unit = f"unit-{generator.randrange(20)}"
                both = (("user", unit), ("session", unit))
                met = service.exposure(shop, unit, "ab"[int(unit[-1]) % 2], received_at)
                did = service.outcome("buy", both, received_at, 1.0)
                records += [met, did]
                sent.append((unit, received_at))
            await journal.append(records)
            await shipper.ship_once()

    async def forget() -> None:
        while not done.is_set():
            unit = f"unit-{generator.randrange(10)}"
            await erased(service, ("user", unit))
            [row] = await service.fetch("select max(erased_at) as at from erasure")
            last_erased[unit] = row["at"]

    async def fold() -> None:
        while not done.is_set():
            assert await service.controller.tick()

    async with contextlib.AsyncExitStack() as stack:
        routes = []
        for number in range(3):
            journal = await Journal.open(tmp_path / str(number), service.clock)
            stack.push_async_callback(journal.close)
            pace = Pace(timeout=20)
            routes.append(route(journal, Shipper(service.pool, journal, now, generator, pace)))
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(forget()), tasks.create_task(fold())]
            await asyncio.gather(*routes)
            done.set()
            await asyncio.gather(*others)
    await service.tick()
    assert service.failures() == 0
    assert len(last_erased) > 2
    never = min(at for _, at in sent) - timedelta(seconds=1)
    kept = Counter((u, at) for u, at in sent if at > last_erased.get(u, never))
    for table in ("exposure", "outcome"):
        rows = await service.fetch(
            f"select unit, received_at from {table} where unit_type = 'user'"  # noqa: S608
        )
        assert Counter((row["unit"], row["received_at"]) for row in rows) == kept
    rows = await service.fetch("select from outcome where unit_type = 'session'")
    assert len(rows) == len(sent)
    await counted(service)
    assert await differences(service) == []
